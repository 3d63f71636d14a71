//! Attention in float64, cell by cell, random inputs for it, and runs on grids of tiles and heads: what tests of
//! attention kernels share.
#pragma once
#include "cells.h"
#include "schedule.h"

namespace oracle {

// Inputs of attention, with rows of NaN behind the last one.
template <class E>
struct Inputs {
  ::Shape shape;
  int queries, keys;
  testing::Matrix<E> q, kv, dout;

  // Rows are `gap` elements apart, and the first starts `lead` elements behind an aligned address.
  Inputs(::Shape shape, int queries, int keys, uint64_t seed, int gap = 0, int lead = 0)
      : shape(shape), queries(queries), keys(keys),
        q(queries + 70, shape.q_heads * shape.qk_dim, shape.q_heads * shape.qk_dim + gap, lead),
        kv(keys + 70, kv_width(), kv_width() + gap, lead),
        dout(queries + 70, shape.q_heads * shape.v_dim, shape.q_heads * shape.v_dim + gap, lead) {
    testing::Random random(seed);
    fill(q, queries, random);
    fill(kv, keys, random);
    fill(dout, queries, random);
  }
  i64 kv_width() const { return (i64)shape.kv_heads * (shape.qk_dim + shape.v_dim); }

 private:
  static void fill(testing::Matrix<E>& x, int rows, testing::Random& random) {
    for (int r = 0; r < rows; r++)
      for (i64 c = 0; c < x.cols; c++) x.at(r, c) = testing::round<E>(random.normal());
  }
};

// Results, row-major and dense. Gradients are those of the inputs alone, without what is added to.
struct Results {
  std::vector<double> out, lse, delta, dq, dkv;
  std::vector<double> probabilities;  // [q_heads, queries, keys]
};

// `silent` queries count in the forward pass but pass no gradients, as if their log-sum-exp were -inf.
template <class E>
Results attention(const Inputs<E>& x, const schedule::Attends& attends,
                  const std::function<bool(int)>& silent = [](int) { return false; }) {
  const ::Shape& s = x.shape;
  int d = s.qk_dim, width = s.v_dim, heads = s.q_heads;
  i64 kv_width = x.kv_width();
  Results r;
  r.out.resize((size_t)x.queries * heads * width);
  r.lse.assign((size_t)x.queries * heads, -INFINITY);
  r.delta.resize((size_t)x.queries * heads);
  r.dq.resize((size_t)x.queries * heads * d);
  r.dkv.resize((size_t)x.keys * kv_width);
  r.probabilities.resize((size_t)heads * x.queries * x.keys);
  std::vector<double> kv = x.kv.values();
  for (int h = 0; h < heads; h++) {
    int kv_head = h / (heads / s.kv_heads);
    i64 k_at = (i64)kv_head * d, v_at = (i64)s.kv_heads * d + (i64)kv_head * width;
    for (int i = 0; i < x.queries; i++) {
      std::vector<int> keys;
      for (int j = 0; j < x.keys; j++) if (attends(i, j)) keys.push_back(j);
      if (keys.empty()) continue;
      std::vector<double> q, dout, p, dp;
      for (int c = 0; c < d; c++) q.push_back(testing::value(x.q.at(i, h * d + c)));
      for (int c = 0; c < width; c++) dout.push_back(testing::value(x.dout.at(i, h * width + c)));
      double most = -INFINITY, sum = 0, delta = 0;
      for (int j : keys) {
        double score = 0, gradient = 0;
        for (int c = 0; c < d; c++) score += q[c] * kv[j * kv_width + k_at + c];
        for (int c = 0; c < width; c++) gradient += dout[c] * kv[j * kv_width + v_at + c];
        p.push_back(score * s.scale);
        dp.push_back(gradient);
        if (p.back() > most) most = p.back();
      }
      for (double score : p) sum += exp(score - most);
      double* out = &r.out[((size_t)i * heads + h) * width];
      for (size_t n = 0; n < keys.size(); n++) {
        p[n] = exp(p[n] - most) / sum;
        delta += p[n] * dp[n];
        r.probabilities[((size_t)h * x.queries + i) * x.keys + keys[n]] = p[n];
        for (int c = 0; c < width; c++) out[c] += p[n] * kv[keys[n] * kv_width + v_at + c];
      }
      r.lse[(size_t)i * heads + h] = most + log(sum);
      r.delta[(size_t)i * heads + h] = delta;
      if (silent(i)) continue;
      for (size_t n = 0; n < keys.size(); n++) {
        double ds = p[n] * (dp[n] - delta) * s.scale;
        i64 row = keys[n] * kv_width;
        for (int c = 0; c < d; c++) {
          r.dq[((size_t)i * heads + h) * d + c] += ds * kv[row + k_at + c];
          r.dkv[row + k_at + c] += ds * q[c];
        }
        for (int c = 0; c < width; c++) r.dkv[row + v_at + c] += p[n] * dout[c];
      }
    }
  }
  return r;
}

// A matrix with the rounded values.
template <class E>
testing::Matrix<E> matrix(i64 rows, i64 cols, const std::vector<double>& values, int gap = 0, int lead = 0) {
  testing::Matrix<E> x(rows, cols, cols + gap, lead);
  for (i64 r = 0; r < rows; r++)
    for (i64 c = 0; c < cols; c++) x.at(r, c) = testing::round<E>(values[r * cols + c]);
  return x;
}

// Runs on several grids of (tiles, heads), of many blocks or of few that do several tiles and heads each, and on all
// schedules; all must give the same bits. `one` runs once: sanitizers get few cases, chosen with care.
template <class Attempt>
void sweep(testing::Report& report, const std::string& name, f64 allowed, Attempt attempt) {
  const dim3 grids[] = {{2, 1}, {1, 2}, {7, 2}};
  std::vector<uint64_t> prints;
  auto run = [&](dim3 grid, const testing::Schedule& schedule) {
    testing::Outcome found = attempt(grid, schedule.options);
    prints.push_back(found.print);
    if (found.why.empty() && !found.untouched) found.why = "writes outside of the results";
    if (found.why.empty() && prints[0] != found.print) found.why = "bits differ from those of another run";
    std::string where = " grid " + std::to_string(grid.x) + "x" + std::to_string(grid.y) + " ";
    report.check(name + where + schedule.name, found.why, found.error, allowed);
  };
  std::vector<testing::Schedule> schedules = report.schedules();
  for (dim3 grid : grids)
    if (!report.one() || grid.x == 2) run(grid, schedules[0]);
  // No copies are waited for, so that landing times are one.
  for (size_t i = 1; i < schedules.size(); i++)
    if (schedules[i].options.async == schedules[0].options.async) run(grids[i % 3], schedules[i]);
}

}  // namespace oracle
