// A product of two matrices, block by block.

#pragma once

#include <algorithm>
#include <cstdlib>
#include <new>

#include "blocks.h"

namespace products {

// `rows` · `columns` results, each a sum of `terms` products.
struct Product {
  int64_t rows, columns, terms;
  // Its rows stand in one piece each, `a_stride` apart.
  const float* a;
  int64_t a_stride;
  // The second matrix: its columns stand in one piece each (`weightᵀ`), or its rows do.
  const float* b;
  int64_t b_stride;
  bool by_column;
  // Of a column each, or null.
  const float* bias;
  float* out;
  int64_t out_stride;
};

// Numbers in a column of a panel: 128 KiB in all, so that it stays in a core's second cache.
constexpr int64_t LONGEST = 1024;

// Memory of one thread, which it keeps.
class Room {
 public:
  float* of(int64_t count) {
    if (count > count_) {
      std::free(memory_);
      count_ = 0;
      memory_ = static_cast<float*>(std::aligned_alloc(64, (count + 15) / 16 * 64));
      if (memory_ == nullptr) throw std::bad_alloc();
      count_ = count;
    }
    return memory_;
  }
  ~Room() { std::free(memory_); }

 private:
  float* memory_ = nullptr;
  int64_t count_ = 0;
};

// The results of `COLUMNS` columns from `column` on, in rows from `begin` to `end`.
inline void panel_of_results(const Product& p, int64_t column, int64_t begin, int64_t end) {
  thread_local Room packed, kept, last;
  // Pieces of about equal length.
  const int64_t pieces = std::max<int64_t>(1, (p.terms + LONGEST - 1) / LONGEST);
  const int64_t piece = (p.terms + pieces - 1) / pieces;
  float* panel = packed.of(piece * COLUMNS);
  const int64_t blocks = (end - begin + ROWS - 1) / ROWS;
  float* sums = kept.of((pieces > 1 ? blocks : 1) * ROWS * COLUMNS);
  const int64_t count = std::min<int64_t>(COLUMNS, p.columns - column);
  for (int64_t number = 0; number < pieces; number++) {
    const int64_t start = number * piece, length = std::min(piece, p.terms - start);
    if (p.by_column) {
      pack_rows(p.b + column * p.b_stride + start, p.b_stride, length, count, panel);
    } else {
      pack_columns(p.b + start * p.b_stride + column, p.b_stride, length, count, panel);
    }
    for (int64_t at = 0; at < blocks; at++) {
      const int64_t row = begin + at * ROWS, rows = std::min<int64_t>(ROWS, end - row);
      const float* a = p.a + row * p.a_stride + start;
      int64_t stride = p.a_stride;
      if (rows < ROWS) {
        // Zeros for rows that are not there.
        float* more = last.of(ROWS * length);
        std::fill(more, more + ROWS * length, 0.f);
        for (int64_t r = 0; r < rows; r++) std::copy_n(a + r * stride, length, more + r * length);
        a = more;
        stride = length;
      }
      float* own = sums + (pieces > 1 ? at * ROWS * COLUMNS : 0);
      block(a, stride, panel, length, number > 0, own);
      if (number + 1 < pieces) continue;
      write(own, p.bias == nullptr ? nullptr : p.bias + column, rows, count, p.out + row * p.out_stride + column, p.out_stride);
    }
  }
}

// Calls `all(tasks, f)`, where f(begin, end) does some of the tasks.
template <class All>
void compute(const Product& p, int64_t threads, All all) {
  const int64_t panels = (p.columns + COLUMNS - 1) / COLUMNS;
  // Rows are divided where panels cannot be divided evenly.
  const bool even = panels % threads == 0 || panels >= 16 * threads || p.rows < 8 * ROWS * threads;
  const int64_t parts = even ? 1 : threads;
  const int64_t rows = ((p.rows + parts - 1) / parts + ROWS - 1) / ROWS * ROWS;
  all(panels * parts, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t first = task / panels * rows;
      if (first < p.rows) panel_of_results(p, task % panels * COLUMNS, first, std::min(first + rows, p.rows));
    }
  });
}

} // namespace products
