//! Ring x Ulysses (USP, Fang and Zhao 2024; LoongTrain): heads are exchanged in groups, keys and values go round
//! between them.

use crate::degree::{Degree, Grid, Runtime};
use crate::heads::SwapHeads;
use crate::order::{TokenOrder, Zigzag};
use crate::strategy::{CpStrategy, RingKv};

/// Head exchange within groups of `Inner` ranks, and a ring over `Outer` groups, with token order `O`. Megatron and
/// Transformer Engine call it `a2a+p2p`.
///
/// The query heads must divide by `Inner`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RingUlysses<Outer = Runtime, Inner = Runtime, O = Zigzag> {
    outer: Outer,
    inner: Inner,
    inner_adjacent: bool,
    order: O,
}

impl<Outer: Degree, Inner: Degree, O: TokenOrder> RingUlysses<Outer, Inner, O> {
    /// `outer` groups of `inner` ranks; the ranks of a group are neighbours in the communicator.
    pub fn new(outer: Outer, inner: Inner) -> Self {
        RingUlysses { outer, inner, inner_adjacent: true, order: O::default() }
    }

    /// Which level is placed on neighbouring ranks: the head exchange (`true`), which moves most per step, or the
    /// ring.
    pub fn with_inner_adjacent(self, inner_adjacent: bool) -> Self {
        RingUlysses { inner_adjacent, ..self }
    }
}

impl<Outer: Degree + Default, Inner: Degree + Default, O: TokenOrder> Default for RingUlysses<Outer, Inner, O> {
    fn default() -> Self {
        RingUlysses::new(Outer::default(), Inner::default())
    }
}

impl<Outer: Degree, Inner: Degree, O: TokenOrder> CpStrategy for RingUlysses<Outer, Inner, O> {
    type Order = O;
    type Heads = SwapHeads<Inner>;
    type Kv = RingKv;
    const NAME: &'static str = "ring-ulysses";

    fn degree(&self) -> usize {
        self.outer.ranks().saturating_mul(self.inner.ranks())
    }

    fn grid(&self) -> Grid {
        Grid { outer: self.outer.ranks(), inner: self.inner.ranks(), inner_adjacent: self.inner_adjacent }
    }
}
