// common.h, and what tests include (cc.bzl).
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "third_party/cc/common.h"
