// The kernels of attention_*_sm90.cu for ELEM, QK_DIM and V_DIM, in namespaces of their own; included once for each.
namespace SIZED_NAME(variant) {

namespace forward {
#include "../../kernels/attention_forward_sm90.cu"
}
namespace backward {
#include "../../kernels/attention_backward_sm90.cu"
}

static const VariantOf<ELEM> VARIANT{
    QK_DIM,
    V_DIM,
    {forward::ROWS, forward::KEYS, forward::SHARED_BYTES, forward::SIZED_NAME(attention_forward_sm90)},
#if QK_DIM + V_DIM <= 320
    {backward::of_keys::ROWS, backward::of_keys::KEYS, backward::of_keys::SHARED_BYTES,
     backward::SIZED_NAME(attention_backward_keys_sm90)},
#else
    {},  // no gradients of keys and values
#endif
    {backward::of_queries::ROWS, backward::of_queries::KEYS, backward::of_queries::SHARED_BYTES,
     backward::SIZED_NAME(attention_backward_queries_sm90)},
};

}

#undef ELEM
#undef QK_DIM
#undef V_DIM
