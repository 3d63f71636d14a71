//! Ulysses (Jacobs et al. 2023): ranks exchange tokens for heads, attend to whole sequences, and exchange back.

use crate::degree::{Degree, Grid, Runtime};
use crate::heads::SwapHeads;
use crate::order::{TokenOrder, Zigzag};
use crate::strategy::{CpStrategy, LocalKv};

/// Head exchange over `N` ranks with token order `O`. Megatron and Transformer Engine call it `a2a`.
///
/// The query heads must divide by the degree, key/value heads need not: `Ulysses<Fixed<3>>` with `FixedHeads<8, 4>`
/// does not compile, and where one of the numbers is of run time, the constructor that sees both refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ulysses<N = Runtime, O = Zigzag> {
    degree: N,
    order: O,
}

impl<N: Degree, O: TokenOrder> Ulysses<N, O> {
    /// Head exchange over `degree` ranks.
    pub fn new(degree: N) -> Self {
        Ulysses { degree, order: O::default() }
    }
}

impl<N: Degree + Default, O: TokenOrder> Default for Ulysses<N, O> {
    fn default() -> Self {
        Ulysses::new(N::default())
    }
}

impl<N: Degree, O: TokenOrder> CpStrategy for Ulysses<N, O> {
    type Order = O;
    type Heads = SwapHeads<N>;
    type Kv = LocalKv;
    const NAME: &'static str = "ulysses";

    fn degree(&self) -> usize {
        self.degree.ranks()
    }

    fn grid(&self) -> Grid {
        Grid { outer: 1, inner: self.degree(), inner_adjacent: true }
    }
}
