//! What the compiler asks of a combination of strategy, layout and kernel.

use crate::kernel::{Kernel, LogSumExp};
use crate::layout::Layout;
use crate::strategy::{CastKv, CpStrategy, GatherKv, KvExchange, LocalKv, RingKv};

/// A line of the table: the strategy works with layout `L` and kernel `K`.
///
/// Implement it for a strategy of your own, for each combination that it works with. A kernel that the strategy's
/// exchange does not run on ([`RunsOn`]) is refused there.
pub trait Row<L: Layout, K: Kernel>: CpStrategy<Kv: RunsOn<K>> {}

/// Exchanges that a kernel can compute: those that merge partial results need a log-sum-exp.
#[diagnostic::on_unimplemented(
    message = "the exchange `{Self}` does not run on the kernel `{K}`: to merge partial results, use `Flash` or another kernel with `LogSumExp`",
    label = "not a kernel for this exchange",
    note = "`LocalKv` and `GatherKv` merge nothing and run on every kernel",
    note = "an exchange of your own implements `RunsOn<K>` for every `K: LogSumExp`, or, if it attends all keys in one tile in natural order, for every kernel"
)]
pub trait RunsOn<K: Kernel>: KvExchange {}

impl<K: Kernel> RunsOn<K> for LocalKv {}
impl<K: Kernel> RunsOn<K> for GatherKv {}
#[diagnostic::do_not_recommend]
impl<K: LogSumExp> RunsOn<K> for RingKv {}
#[diagnostic::do_not_recommend]
impl<K: LogSumExp> RunsOn<K> for CastKv {}

/// The gate of model and attention: a strategy that works with layout `L` and kernel `K`.
///
/// It holds for every [`Row`]; do not implement it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not work with layout `{L}` and kernel `{K}`: use kernel `Flash`, and layout `Thd` with `Magi` and `Dynamic`",
    label = "this combination is not in the support table",
    note = "`Magi` and `Dynamic` place the documents of packed batches, which only `Thd` has",
    note = "`Unfused` works with `Single`, `AllGather` and `Ulysses` on `Bshd` and `Sbhd`; other exchanges merge partial results, which needs a log-sum-exp",
    note = "a strategy of your own works with the layouts and kernels for which it implements `Row`"
)]
pub trait Supports<L: Layout, K: Kernel>: CpStrategy {}

#[diagnostic::do_not_recommend]
impl<H, L, K> Supports<L, K> for H
where
    H: Row<L, K>,
    L: Layout,
    K: Kernel,
{
}
