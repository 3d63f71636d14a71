//! Included once for each ELEM, QK_DIM and V_DIM: the kernels of attention_forward.cu and attention_backward.cu for them,
//! as Variant<ELEM, QK_DIM, V_DIM>.
namespace DIMS_NAME(forward) {
#include "../../kernels/attention_forward.cu"
}
namespace DIMS_NAME(backward) {
#include "../../kernels/attention_backward.cu"
}

template <>
struct Variant<ELEM, QK_DIM, V_DIM> {
  static constexpr auto forward = DIMS_NAME(forward)::DIMS_NAME(attention_forward);
  static constexpr auto keys = DIMS_NAME(backward)::DIMS_NAME(attention_backward_keys);
  static constexpr auto queries = DIMS_NAME(backward)::DIMS_NAME(attention_backward_queries);
  static constexpr int FORWARD_THREADS = DIMS_NAME(forward)::THREADS;
  static constexpr int KEYS_THREADS = DIMS_NAME(backward)::KEYS_THREADS;
  static constexpr int QUERIES_THREADS = DIMS_NAME(backward)::QUERIES_THREADS;
  static constexpr u32 FORWARD_SHARED = DIMS_NAME(forward)::SHARED_BYTES;
  static constexpr u32 KEYS_SHARED = DIMS_NAME(backward)::KEYS_SHARED_BYTES;
  static constexpr u32 QUERIES_SHARED = DIMS_NAME(backward)::QUERIES_SHARED_BYTES;
};

#undef ELEM
#undef QK_DIM
#undef V_DIM
