// EXPECT_OK / ASSERT_OK, ASSERT_OK_AND_ASSIGN and ExpectError for tests.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <initializer_list>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace moe {

inline const absl::Status& StatusOf(const absl::Status& s) { return s; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& s) {
  return s.status();
}

// Expects an error of the given code whose message contains every one of `parts`.
template <typename S, typename... Parts>
void ExpectError(const S& result, absl::StatusCode code, Parts... parts) {
  const absl::Status status = StatusOf(result);
  EXPECT_EQ(status.code(), code) << status.ToString();
  const std::string message(status.message());
  for (const std::string& part : std::initializer_list<std::string>{std::string(parts)...}) {
    EXPECT_THAT(message, ::testing::HasSubstr(part));
  }
}

}  // namespace moe

#define EXPECT_OK(expr)                                                                        \
  do {                                                                                         \
    const auto& moe_result_ = (expr);                                                          \
    EXPECT_TRUE(::moe::StatusOf(moe_result_).ok()) << ::moe::StatusOf(moe_result_).ToString(); \
  } while (false)
#define ASSERT_OK(expr)                                                                        \
  do {                                                                                         \
    const auto& moe_result_ = (expr);                                                          \
    ASSERT_TRUE(::moe::StatusOf(moe_result_).ok()) << ::moe::StatusOf(moe_result_).ToString(); \
  } while (false)
#define MOE_TEST_CONCAT_(a, b) a##b
#define MOE_TEST_CONCAT(a, b) MOE_TEST_CONCAT_(a, b)
#define ASSERT_OK_AND_ASSIGN(lhs, expr) MOE_ASSERT_ASSIGN_(MOE_TEST_CONCAT(moe_test_or_, __LINE__), lhs, expr)
#define MOE_ASSERT_ASSIGN_(var, lhs, expr)          \
  auto var = (expr);                                \
  ASSERT_TRUE(var.ok()) << var.status().ToString(); \
  lhs = *std::move(var)
