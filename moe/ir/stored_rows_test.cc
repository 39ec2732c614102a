#include "moe/ir/stored_rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "moe/base/status_matchers.h"
#include "moe/ir/state.h"

namespace moe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

StoredRows Rows(int64_t logical, std::vector<int64_t> row) { return {logical, std::move(row)}; }

TEST(StoredRowsTest, ReplicasAreCopiedAndComeBackOnce) {
  const StoredRows rows = Rows(2, {1, -1, 0, 1});
  EXPECT_TRUE(rows.HasReplicas());
  EXPECT_FALSE(rows.IsIdentity());
  EXPECT_THAT(rows.ToStored({1, 2, 3, 4}, false), ElementsAre(3, 4, 0, 0, 1, 2, 3, 4));
  EXPECT_THAT(rows.ToStored({1, 2, 3, 4}, true), ElementsAre(3, 4, 0, 0, 1, 2, 0, 0));
  ASSERT_OK_AND_ASSIGN(const auto back, rows.ToLogical({3, 4, 9, 9, 1, 2, 3, 4}, false));
  EXPECT_THAT(back, ElementsAre(1, 2, 3, 4));
  ASSERT_OK_AND_ASSIGN(const auto sum, rows.ToLogical({3, 4, 9, 9, 1, 2, 30, 40}, true));
  EXPECT_THAT(sum, ElementsAre(1, 2, 33, 44));
  ExpectError(rows.ToLogical({3, 4, 0, 0, 1, 2, 3, 5}, false), absl::StatusCode::kInternal,
              "rows 0 and 3 hold replicas of 1 that differ");
  EXPECT_EQ(rows.LogicalIndex(1, 2), 3);
  EXPECT_EQ(rows.LogicalIndex(2, 2), -1);
  EXPECT_FALSE(Rows(2, {1, 0, -1}).HasReplicas());
  EXPECT_TRUE(Rows(2, {0, 1}).IsIdentity());
  EXPECT_FALSE(Rows(1, {0, -1}).IsIdentity());
}

TEST(StoredRowsTest, AMapHoldsEveryExpertAndNothingElse) {
  EXPECT_EQ(ExpertMapProblem({2, -1, 0, 1, 1}, 3), "");
  EXPECT_THAT(ExpertMapProblem({2, 0, 0, 0}, 3), HasSubstr("expert 1 has no slot"));
  EXPECT_THAT(ExpertMapProblem({-1, -1, 0}, 3), HasSubstr("experts 1, 2 have no slot"));
  EXPECT_THAT(ExpertMapProblem({0, 1, 2, 3}, 3), HasSubstr("slot 3 holds 3"));
  EXPECT_THAT(ExpertMapProblem({0, 1, 2, -2}, 3), HasSubstr("slot 3 holds -2"));
}

class StateTest : public ::testing::Test {
 protected:
  StateTest() {
    State table;
    table.name = "map";
    table.type = Type(DType::kS32, {4});
    table.attributes = {{"kind", std::string("expert_map")},
                        {"experts", int64_t{3}},
                        {"slots", std::vector<int64_t>{0, 1, 2, -1}}};
    table_ = module_.AddState(table);
    State w;
    w.name = "w";
    w.type = Type(DType::kF32, {4, 2});
    w.attributes = {{"kind", std::string("parameter")}, {"expert_map", std::string("map")}};
    w_ = module_.AddState(w);
  }
  Module module_;
  State *table_, *w_;
};

TEST_F(StateTest, TypesAreThoseOfTheModel) {
  EXPECT_EQ(LogicalType(module_, *w_), Type(DType::kF32, {3, 2}));
  EXPECT_EQ(LogicalType(module_, *table_), table_->type);
  EXPECT_EQ(StoredRowsOf(module_, *table_), std::nullopt);
  w_->attributes.erase("expert_map");
  EXPECT_EQ(LogicalType(module_, *w_), w_->type);
  w_->attributes["logical_rows"] = int64_t{3};
  EXPECT_EQ(LogicalType(module_, *w_), Type(DType::kF32, {3, 2}));
  EXPECT_THAT(StoredRowsOf(module_, *w_)->row, ElementsAre(0, 1, 2, -1));
}

// Plans come from files: what they say of rows must not lead outside of the tensors.
TEST_F(StateTest, AttributesThatDoNotFitAreProblems) {
  EXPECT_EQ(StoredRowsProblem(module_, *w_), "");
  EXPECT_EQ(StoredRowsProblem(module_, *table_), "");
  const auto broken = [&](State* s, const char* key, Attribute value) {
    const Attributes was = s->attributes;
    s->attributes[key] = std::move(value);
    const std::string problem = StoredRowsProblem(module_, *s);
    s->attributes = was;
    return problem;
  };
  EXPECT_THAT(broken(w_, "expert_map", std::string("w")), HasSubstr("not an expert map"));
  EXPECT_THAT(broken(w_, "logical_rows", int64_t{5}), HasSubstr("logical_rows = 5 of 4"));
  EXPECT_THAT(broken(table_, "slots", std::vector<int64_t>{0, 1, 2}), HasSubstr("with n numbers"));
  EXPECT_THAT(broken(table_, "slots", std::vector<int64_t>{0, 1, 9, 2}), HasSubstr("slot 2 holds 9"));
  EXPECT_THAT(broken(table_, "experts", int64_t{5}), HasSubstr("1 to n"));
  w_->type.dims[0] = 5;
  EXPECT_THAT(StoredRowsProblem(module_, *w_), HasSubstr("another number"));
}

}  // namespace
}  // namespace moe
