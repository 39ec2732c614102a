#include "moe/kernels/cpu/attention_simd.h"

#include <algorithm>
#include <cstring>

// This order is Highway's: the file includes itself once per instruction set.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "moe/kernels/cpu/attention_simd.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"
#include "moe/kernels/cpu/exp-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace moe::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kQueries = kAttentionQueries, kKeys = kAttentionKeys;
constexpr int64_t kPiece = 16;  // keys that are seen or skipped together

// Two vectors are at most a row of a tile.
template <typename T>
using Tag = hn::CappedTag<T, 64 / sizeof(T)>;
template <typename T>
using Vec = hn::Vec<Tag<T>>;

// ---- Products: c[r, i] (+)= sum over x of a[r, x] b[x, i]. a has any strides and is read by element, b and
// c are rows of vectors.

template <typename T>
struct Factors {
  int64_t n;  // summands
  const T* a;
  int64_t a_row, a_x;  // strides
  const T* b;
  int64_t b_x;
  T* c;
  int64_t c_row;
};

template <bool kAdd, typename T>
HWY_INLINE Vec<T> Start(const T* c) {
  const Tag<T> d;
  if constexpr (kAdd) {
    return hn::LoadU(d, c);
  } else {
    return hn::Zero(d);
  }
}

// kRows rows by two vectors, all in registers.
template <int kRows, bool kAdd, typename T>
HWY_ATTR void Block(const Factors<T>& f) {
  const Tag<T> d;
  const int64_t lanes = hn::Lanes(d), row = f.a_row, cr = f.c_row;
  T* const c = f.c;
  Vec<T> x0 = Start<kAdd>(c), y0 = Start<kAdd>(c + lanes);
  Vec<T> x1, y1, x2, y2, x3, y3, x4, y4, x5, y5;
  if constexpr (kRows > 1) x1 = Start<kAdd>(c + cr), y1 = Start<kAdd>(c + cr + lanes);
  if constexpr (kRows > 2) x2 = Start<kAdd>(c + 2 * cr), y2 = Start<kAdd>(c + 2 * cr + lanes);
  if constexpr (kRows > 3) x3 = Start<kAdd>(c + 3 * cr), y3 = Start<kAdd>(c + 3 * cr + lanes);
  if constexpr (kRows > 4) x4 = Start<kAdd>(c + 4 * cr), y4 = Start<kAdd>(c + 4 * cr + lanes);
  if constexpr (kRows > 5) x5 = Start<kAdd>(c + 5 * cr), y5 = Start<kAdd>(c + 5 * cr + lanes);
  const T *a = f.a, *a3 = f.a + 3 * row, *b = f.b;
  for (int64_t i = 0; i < f.n; ++i, a += f.a_x, a3 += f.a_x, b += f.b_x) {
    const Vec<T> bx = hn::LoadU(d, b), by = hn::LoadU(d, b + lanes);
    const auto multiply = [&](const T* p, Vec<T>& x, Vec<T>& y) HWY_ATTR {
      const Vec<T> ar = hn::Set(d, *p);
      x = hn::MulAdd(ar, bx, x);
      y = hn::MulAdd(ar, by, y);
    };
    multiply(a, x0, y0);
    if constexpr (kRows > 1) multiply(a + row, x1, y1);
    if constexpr (kRows > 2) multiply(a + 2 * row, x2, y2);
    if constexpr (kRows > 3) multiply(a3, x3, y3);
    if constexpr (kRows > 4) multiply(a3 + row, x4, y4);
    if constexpr (kRows > 5) multiply(a3 + 2 * row, x5, y5);
  }
  const auto store = [&](int64_t r, Vec<T> x, Vec<T> y) HWY_ATTR {
    hn::StoreU(x, d, c + r * cr);
    hn::StoreU(y, d, c + r * cr + lanes);
  };
  store(0, x0, y0);
  if constexpr (kRows > 1) store(1, x1, y1);
  if constexpr (kRows > 2) store(2, x2, y2);
  if constexpr (kRows > 3) store(3, x3, y3);
  if constexpr (kRows > 4) store(4, x4, y4);
  if constexpr (kRows > 5) store(5, x5, y5);
}

// The columns that are left of heads whose width is no multiple of two vectors.
template <bool kAdd, typename T>
HWY_ATTR void Rest(const Factors<T>& f, int64_t rows, int64_t columns) {
  const Tag<T> d;
  const int64_t lanes = hn::Lanes(d);
  for (int64_t r = 0; r < rows; ++r) {
    const T* a = f.a + r * f.a_row;
    T* c = f.c + r * f.c_row;
    int64_t j = 0;
    for (; j + lanes <= columns; j += lanes) {
      Vec<T> x = Start<kAdd>(c + j);
      for (int64_t i = 0; i < f.n; ++i) {
        x = hn::MulAdd(hn::Set(d, a[i * f.a_x]), hn::LoadU(d, f.b + i * f.b_x + j), x);
      }
      hn::StoreU(x, d, c + j);
    }
    for (; j < columns; ++j) {
      T x = kAdd ? c[j] : T(0);
      for (int64_t i = 0; i < f.n; ++i) x += a[i * f.a_x] * f.b[i * f.b_x + j];
      c[j] = x;
    }
  }
}

template <bool kAdd, typename T>
HWY_ATTR void Products(Factors<T> f, int64_t rows, int64_t columns) {
  const int64_t pair = 2 * hn::Lanes(Tag<T>());
  const int64_t groups = (rows + 5) / 6;
  for (; columns >= pair; columns -= pair, f.b += pair, f.c += pair) {
    Factors<T> g = f;
    for (int64_t i = 0, r = 0; i < groups; ++i) {
      const int64_t n = rows * (i + 1) / groups - r;  // groups of about the same size
      switch (n) {
        case 1:
          Block<1, kAdd>(g);
          break;
        case 2:
          Block<2, kAdd>(g);
          break;
        case 3:
          Block<3, kAdd>(g);
          break;
        case 4:
          Block<4, kAdd>(g);
          break;
        case 5:
          Block<5, kAdd>(g);
          break;
        default:
          Block<6, kAdd>(g);
          break;
      }
      r += n;
      g.a += n * f.a_row;
      g.c += n * f.c_row;
    }
  }
  if (columns > 0) Rest<kAdd>(f, rows, columns);
}

// ---- Tiles

struct Range {
  int32_t low, high;
};
inline Range RangeOf(const int32_t* p, int64_t n) {
  Range r{p[0], p[0]};
  for (int64_t i = 1; i < n; ++i) r = {std::min(r.low, p[i]), std::max(r.high, p[i])};
  return r;
}

// A tile of queries ends where positions jump, so that what it cannot see is skipped in any order of the
// sequence. Short runs, in an order that has no long ones, are not worth a tile each.
inline int64_t TileOf(const int32_t* p, int64_t left) {
  const int64_t most = std::min(kQueries, left);
  int64_t n = 1;
  while (n < most && p[n] == p[n - 1] + 1) ++n;
  return n < std::min<int64_t>(8, left) ? most : n;
}

// Some keys that a tile of queries sees, as runs of neighbours; row: of their scores in the tile.
struct Keys {
  struct Run {
    int64_t first, n, row;
  };
  Run runs[kKeys / kPiece];
  int num_runs = 0;
  Run hidden[kKeys / kPiece];  // pieces of which not every query sees every key
  int num_hidden = 0;
  int64_t rows = 0;
};

// The next keys from *at on; none (rows = 0) at the end.
inline Keys NextKeys(const int32_t* positions, int64_t t, Range queries, int64_t* at) {
  Keys keys;
  for (; *at < t && keys.rows + kPiece <= kKeys; *at += kPiece) {
    const int64_t n = std::min(kPiece, t - *at);
    const Range range = RangeOf(positions + *at, n);
    if (range.low > queries.high) continue;
    Keys::Run* last = keys.num_runs > 0 ? &keys.runs[keys.num_runs - 1] : nullptr;
    if (last != nullptr && last->first + last->n == *at) {
      last->n += n;
    } else {
      keys.runs[keys.num_runs++] = {*at, n, keys.rows};
    }
    if (range.high > queries.low) keys.hidden[keys.num_hidden++] = {*at, n, keys.rows};
    keys.rows += n;
  }
  return keys;
}

// Lanes of positions as wide as T.
template <typename T>
HWY_INLINE hn::Vec<hn::RebindToSigned<Tag<T>>> Positions(const int32_t* p) {
  const hn::RebindToSigned<Tag<T>> di;
  if constexpr (sizeof(T) == sizeof(int32_t)) {
    return hn::LoadU(di, p);
  } else {
    return hn::PromoteTo(di, hn::LoadU(hn::Rebind<int32_t, Tag<T>>(), p));
  }
}

template <typename T>
HWY_ATTR void Hide(const Keys& keys, const int32_t* q_positions, const int32_t* k_positions, int64_t columns,
                   T* scores) {
  const Tag<T> d;
  const hn::RebindToSigned<Tag<T>> di;
  const auto masked = hn::Set(d, static_cast<T>(kAttentionMasked));
  for (int h = 0; h < keys.num_hidden; ++h) {
    const Keys::Run& piece = keys.hidden[h];
    for (int64_t i = 0; i < columns; i += hn::Lanes(d)) {
      const auto query = Positions<T>(q_positions + i);
      for (int64_t j = 0; j < piece.n; ++j) {
        T* row = scores + (piece.row + j) * kQueries + i;
        const auto after = hn::RebindMask(d, hn::Gt(hn::Set(di, k_positions[piece.first + j]), query));
        hn::StoreU(hn::IfThenElse(after, masked, hn::LoadU(d, row)), d, row);
      }
    }
  }
}

// y[j, i] = by x[i, j], zero for n <= i < columns; rows of y are kQueries wide.
template <typename T>
HWY_ATTR void Transpose(const T* x, int64_t stride, int64_t n, int64_t width, T by, int64_t columns, T* y) {
  for (int64_t j = 0; j < width; ++j) {
    for (int64_t i = 0; i < n; ++i) y[j * kQueries + i] = by * x[i * stride + j];
    for (int64_t i = n; i < columns; ++i) y[j * kQueries + i] = T(0);
  }
}

// The queries of a tile, and what both directions need of them.
template <typename T>
struct Tile {
  int64_t first, n;
  int64_t columns;  // n rounded up to pairs of vectors
  Range range;
  int32_t positions[kQueries];
};

template <typename T>
HWY_ATTR Tile<T> TileAt(const AttentionHead<T>& h, int64_t first) {
  Tile<T> tile;
  tile.first = first;
  tile.n = TileOf(h.q_positions + first, h.s - first);
  const int64_t pair = 2 * hn::Lanes(Tag<T>());
  tile.columns = (tile.n + pair - 1) / pair * pair;
  tile.range = RangeOf(h.q_positions + first, tile.n);
  for (int64_t i = 0; i < kQueries; ++i) {  // the lanes without a query do what the last one does
    tile.positions[i] = h.q_positions[first + std::min(i, tile.n - 1)];
  }
  return tile;
}

// scores[key, query] of the keys, masked.
template <typename T>
HWY_ATTR void Scores(const AttentionHead<T>& h, const Tile<T>& tile, const Keys& keys, const T* q,
                     T* scores) {
  for (int r = 0; r < keys.num_runs; ++r) {
    const Keys::Run& run = keys.runs[r];
    Products<false>(Factors<T>{h.d, h.k + run.first * h.k_stride, h.k_stride, 1, q, kQueries,
                               scores + run.row * kQueries, kQueries},
                    run.n, tile.columns);
  }
  Hide(keys, tile.positions, h.k_positions, tile.columns, scores);
}

// Where nothing is seen, differences to the maximum (or the log-sum-exp) must not be 0.
template <typename T>
HWY_INLINE Vec<T> Bounded(Vec<T> max) {
  return hn::Max(hn::Set(Tag<T>(), static_cast<T>(kAttentionMasked / 10)), max);  // this way NaN of NaN
}

template <typename T>
HWY_ATTR void Forward(const AttentionHead<T>& h) {
  const Tag<T> d;
  const int64_t lanes = hn::Lanes(d);
  T* const scores = h.workspace;
  T* const q = scores + kQueries * kKeys;
  T* const o = q + kQueries * h.d;  // [d, query]
  T* const max = o + kQueries * h.d;
  T *const sum = max + kQueries, *const keep = sum + kQueries;
  for (int64_t s0 = 0; s0 < h.s;) {
    const Tile<T> tile = TileAt(h, s0);
    Transpose(h.q + s0 * h.q_stride, h.q_stride, tile.n, h.d, h.scale, tile.columns, q);
    std::fill_n(max, kQueries, static_cast<T>(kAttentionMasked));
    std::fill_n(sum, kQueries, T(0));
    bool first = true;
    for (int64_t at = 0;;) {
      const Keys keys = NextKeys(h.k_positions, h.t, tile.range, &at);
      if (keys.rows == 0) break;
      Scores(h, tile, keys, q, scores);
      for (int64_t i = 0; i < tile.columns; i += lanes) {
        const Vec<T> old = hn::LoadU(d, max + i);
        Vec<T> m = old;
        for (int64_t j = 0; j < keys.rows; ++j) m = hn::Max(m, hn::LoadU(d, scores + j * kQueries + i));
        hn::StoreU(m, d, max + i);
        const Vec<T> bound = Bounded<T>(m);
        const Vec<T> kept = ExpOrNaN(d, hn::Sub(Bounded<T>(old), bound));
        hn::StoreU(kept, d, keep + i);
        Vec<T> s = hn::Mul(hn::LoadU(d, sum + i), kept);
        for (int64_t j = 0; j < keys.rows; ++j) {
          T* p = scores + j * kQueries + i;
          const Vec<T> e = ExpOrNaN(d, hn::Sub(hn::LoadU(d, p), bound));
          hn::StoreU(e, d, p);
          s = hn::Add(s, e);
        }
        hn::StoreU(s, d, sum + i);
        for (int64_t j = 0; j < h.d && !first; ++j) {
          hn::StoreU(hn::Mul(hn::LoadU(d, o + j * kQueries + i), kept), d, o + j * kQueries + i);
        }
      }
      for (int r = 0; r < keys.num_runs; ++r) {
        const Keys::Run& run = keys.runs[r];
        const Factors<T> f{
            run.n,   h.v + run.first * h.k_stride, 1, h.k_stride, scores + run.row * kQueries, kQueries, o,
            kQueries};
        first ? Products<false>(f, h.d, tile.columns) : Products<true>(f, h.d, tile.columns);
        first = false;
      }
    }
    for (int64_t i = 0; i < tile.columns; i += lanes) {  // keep: what the output is multiplied by
      const Vec<T> s = hn::LoadU(d, sum + i), masked = hn::Set(d, static_cast<T>(kAttentionMasked));
      const auto seen = hn::Not(hn::Eq(s, hn::Zero(d)));  // also NaN
      const Vec<T> safe = hn::IfThenElse(seen, s, hn::Set(d, T(1)));
      hn::StoreU(hn::IfThenElseZero(seen, hn::Div(hn::Set(d, T(1)), safe)), d, keep + i);
      const Vec<T> lse = hn::Add(hn::LoadU(d, max + i), hn::Log(d, safe));
      const Vec<T> known = hn::IfThenElse(hn::IsNaN(s), s, lse);
      hn::StoreU(hn::IfThenElse(seen, known, masked), d, max + i);
    }
    for (int64_t i = 0; i < tile.n; ++i) {
      T* row = h.o + (s0 + i) * h.q_stride;
      if (first) {
        std::fill_n(row, h.d, T(0));
      } else {
        for (int64_t j = 0; j < h.d; ++j) row[j] = o[j * kQueries + i] * keep[i];
      }
      h.lse[(s0 + i) * h.lse_stride] = max[i];
    }
    s0 += tile.n;
  }
}

template <typename T>
HWY_ATTR void Backward(const AttentionHead<T>& h) {
  const Tag<T> d;
  const int64_t lanes = hn::Lanes(d);
  T* const p = h.workspace;
  T* const ds = p + kQueries * kKeys;
  T* const q = ds + kQueries * kKeys;
  T* const dy = q + kQueries * h.d;
  T* const dq = dy + kQueries * h.d;
  T *const delta = dq + kQueries * h.d, *const lse = delta + kQueries;
  const Vec<T> scale = hn::Set(d, h.scale);
  for (int64_t s0 = 0; s0 < h.s;) {
    const Tile<T> tile = TileAt(h, s0);
    const T* const q_rows = h.q + s0 * h.q_stride;
    const T* const dy_rows = h.dy + s0 * h.q_stride;
    Transpose(q_rows, h.q_stride, tile.n, h.d, h.scale, tile.columns, q);
    Transpose(dy_rows, h.q_stride, tile.n, h.d, T(1), tile.columns, dy);
    std::fill_n(delta, 2 * kQueries, T(0));
    for (int64_t i = 0; i < tile.n; ++i) {
      const T *o_row = h.o + (s0 + i) * h.q_stride, *dy_row = dy_rows + i * h.q_stride;
      T sum = 0;
      for (int64_t j = 0; j < h.d; ++j) sum += o_row[j] * dy_row[j];
      delta[i] = sum;
      lse[i] = h.lse[(s0 + i) * h.lse_stride];
    }
    bool first = true;
    for (int64_t at = 0;;) {
      const Keys keys = NextKeys(h.k_positions, h.t, tile.range, &at);
      if (keys.rows == 0) break;
      Scores(h, tile, keys, q, p);
      for (int r = 0; r < keys.num_runs; ++r) {
        const Keys::Run& run = keys.runs[r];
        Products<false>(Factors<T>{h.d, h.v + run.first * h.k_stride, h.k_stride, 1, dy, kQueries,
                                   ds + run.row * kQueries, kQueries},
                        run.n, tile.columns);
      }
      for (int64_t i = 0; i < tile.columns; i += lanes) {
        const Vec<T> bound = Bounded<T>(hn::LoadU(d, lse + i)), sub = hn::LoadU(d, delta + i);
        for (int64_t j = 0; j < keys.rows; ++j) {
          T *pj = p + j * kQueries + i, *dj = ds + j * kQueries + i;
          const Vec<T> e = ExpOrNaN(d, hn::Sub(hn::LoadU(d, pj), bound));
          hn::StoreU(e, d, pj);
          hn::StoreU(hn::Mul(hn::Mul(scale, e), hn::Sub(hn::LoadU(d, dj), sub)), d, dj);
        }
      }
      for (int r = 0; r < keys.num_runs; ++r) {
        const Keys::Run& run = keys.runs[r];
        const int64_t k0 = run.first * h.k_stride, row = run.row * kQueries;
        Products<true>(Factors<T>{tile.n, p + row, kQueries, 1, dy_rows, h.q_stride, h.dv + k0, h.k_stride},
                       run.n, h.d);
        Products<true>(Factors<T>{tile.n, ds + row, kQueries, 1, q_rows, h.q_stride, h.dk + k0, h.k_stride},
                       run.n, h.d);
        const Factors<T> f{run.n, h.k + k0, 1, h.k_stride, ds + row, kQueries, dq, kQueries};
        first ? Products<false>(f, h.d, tile.columns) : Products<true>(f, h.d, tile.columns);
        first = false;
      }
    }
    for (int64_t i = 0; i < tile.n; ++i) {
      T* row = h.dq + (s0 + i) * h.q_stride;
      for (int64_t j = 0; j < h.d; ++j) row[j] = first ? T(0) : dq[j * kQueries + i];
    }
    s0 += tile.n;
  }
}

void FillAttentionF32(AttentionSimd<float>* s) { *s = {&Forward<float>, &Backward<float>}; }
void FillAttentionF64(AttentionSimd<double>* s) { *s = {&Forward<double>, &Backward<double>}; }

}  // namespace HWY_NAMESPACE
}  // namespace moe::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moe::kernels {

HWY_EXPORT(FillAttentionF32);
HWY_EXPORT(FillAttentionF64);

template <>
const AttentionSimd<float>& AttentionSimd<float>::Get() {
  static const AttentionSimd<float> table = [] {
    AttentionSimd<float> s;
    HWY_DYNAMIC_DISPATCH(FillAttentionF32)(&s);
    return s;
  }();
  return table;
}

template <>
const AttentionSimd<double>& AttentionSimd<double>::Get() {
  static const AttentionSimd<double> table = [] {
    AttentionSimd<double> s;
    HWY_DYNAMIC_DISPATCH(FillAttentionF64)(&s);
    return s;
  }();
  return table;
}

}  // namespace moe::kernels
#endif  // HWY_ONCE
