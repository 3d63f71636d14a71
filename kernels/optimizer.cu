// AdamW with a bound on the gradient's norm: src/ops/optimizer.
#include "cells.cuh"
#include "team.cuh"

// Block b sums the squares of the b-th chunk.
KERNEL void __launch_bounds__(BLOCK) NAME(sum_of_squares)(const f32* x, i64 count, f64* partials) {
  i64 end = chunk_start(blockIdx.x + 1, count);
  f64 sum = 0;
  for (i64 i = chunk_start(blockIdx.x, count) + threadIdx.x; i < end; i += BLOCK) {
#if FAULT == 160
    sum = (f32)(sum + x[i] * x[i]);
#else
    sum += (f64)x[i] * x[i];
#endif
  }
  sum = over_team<BLOCK>(sum, Sum());
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}
EXPORT(NAME(sum_of_squares))

struct AdamwOptions {
  f64 beta1, beta2, eps, weight_decay, clip;
};

// What a step does to a weight.
struct Rule {
  f32 scale, keep, beta1, rest1, beta2, rest2, size, correction, eps;
};

INLINE Rule rule_of(const AdamwOptions& options, const f64* numbers) {
  f64 lr = numbers[0], step = numbers[1], norm = sqrt(numbers[2]), bound = options.clip / (norm + 1e-6);
#if FAULT == 161
  step -= 1;
#elif FAULT == 162
  bound = options.clip / (numbers[2] + 1e-6);
#endif
  Rule rule;
  rule.scale = (f32)(options.clip > 0 && bound < 1 ? bound : 1);
  rule.keep = (f32)(1 - lr * options.weight_decay);
  rule.beta1 = (f32)options.beta1;
  rule.rest1 = (f32)(1 - options.beta1);
  rule.beta2 = (f32)options.beta2;
  rule.rest2 = (f32)(1 - options.beta2);
  rule.size = (f32)(lr / (1 - pow(options.beta1, step)));
  rule.correction = (f32)sqrt(1 - pow(options.beta2, step));
  rule.eps = (f32)options.eps;
  return rule;
}

// A step, in PyTorch's order of operations: the gradient is scaled, means and weights are updated, the working copy is
// written, the gradient is zeroed. `numbers` are the learning rate, the step from 1, the sum of the squares of the
// gradient, and that of the weights before; the first `decayed` weights decay. Block b does the b-th chunk and writes
// the sum of the squares of its new weights.
//
// If the sum of the gradient's squares is not finite nothing changes: the partials then sum to the number that there is.
KERNEL void __launch_bounds__(BLOCK) NAME(adamw)(
    AdamwOptions options, i64 decayed, const f64* numbers, f32* gradient, f32* weights, f32* mean, f32* square,
    ELEM* working, i64 count, f64* partials
) {
  SHARED_ARRAY(Rule, shared, [1]);
#if FAULT != 163
  if (numbers[2] - numbers[2] != 0) {
    if (threadIdx.x == 0) partials[blockIdx.x] = blockIdx.x == 0 ? numbers[3] : 0;
    return;
  }
#endif
  if (threadIdx.x == 0) shared[0] = rule_of(options, numbers);
#if FAULT != 164
  __syncthreads();
#endif
  const Rule rule = shared[0];
  i64 end = chunk_start(blockIdx.x + 1, count);
  f64 sum = 0;
  for (i64 i = chunk_start(blockIdx.x, count) + threadIdx.x; i < end; i += BLOCK) {
    // All that is read is read first: the arrays might overlap, for all the compiler knows.
    f32 g = gradient[i] * rule.scale, m = mean[i], v = square[i], w = weights[i];
    m = rule.beta1 * m + rule.rest1 * g;
    v = rule.beta2 * v + rule.rest2 * (g * g);
    f32 root = sqrtf(v) / rule.correction + rule.eps;
#if FAULT == 165
    f32 keep = rule.keep;
#else
    f32 keep = i < decayed ? rule.keep : 1;
#endif
    w = w * keep - rule.size * (m / root);
    mean[i] = m;
    square[i] = v;
    weights[i] = w;
    round_into(working[i], w);
#if FAULT != 166
    gradient[i] = 0;
#endif
    sum += (f64)w * w;
  }
  sum = over_team<BLOCK>(sum, Sum());
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}
EXPORT(NAME(adamw))
