//! Head exchange: around attention, ranks give up rows for heads and take them back.

mod share;

pub(crate) use share::HeadSwap;

use std::fmt;
use std::marker::PhantomData;

use crate::degree::{Degree, Divides, Runtime};
use crate::error::SupportError;

mod sealed {
    #[diagnostic::on_unimplemented(message = "`{Self}` is not a head exchange: use `KeepHeads` or `SwapHeads`")]
    pub trait Sealed {}
}

/// Whether ranks exchange heads for tokens around attention: [`KeepHeads`] or [`SwapHeads`]. The executor knows these
/// two ways, so there are no others.
pub trait HeadExchange: sealed::Sealed + Copy + fmt::Debug + std::marker::Send + Sync + 'static {
    /// Name in messages.
    const NAME: &'static str;

    /// Whether the ranks of a group exchange heads.
    const SWAPS: bool;

    /// The ranks of a group that exchanges heads, if the type says how many.
    const RANKS: Option<usize> = None;

    /// Query heads that one of `ranks` ranks attends with, or why they cannot be shared out.
    fn heads_per_rank(strategy: &'static str, q_heads: usize, ranks: usize) -> Result<usize, SupportError>;
}

/// Head exchanges that can share out `Q` query heads, as far as the compiler sees. What it does not see is left to
/// [`HeadExchange::heads_per_rank`].
#[diagnostic::on_unimplemented(message = "`{Self}` cannot share out {Q} query heads")]
pub trait SharesHeads<const Q: usize>: HeadExchange {}

/// Every rank attends with all heads of its own tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeepHeads;

impl sealed::Sealed for KeepHeads {}
impl<N: Degree> sealed::Sealed for SwapHeads<N> {}

impl HeadExchange for KeepHeads {
    const NAME: &'static str = "keep-heads";
    const SWAPS: bool = false;

    fn heads_per_rank(_strategy: &'static str, q_heads: usize, _ranks: usize) -> Result<usize, SupportError> {
        Ok(q_heads)
    }
}

impl<const Q: usize> SharesHeads<Q> for KeepHeads {}

/// Every one of the `N` ranks of a group attends with its share of the heads, for the tokens of the whole group
/// (DeepSpeed-Ulysses, Jacobs et al. 2023).
///
/// Only query heads must divide by the ranks of the group: a rank receives the key/value heads that its queries use,
/// and where several ranks use one, its gradients are summed in rank order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SwapHeads<N = Runtime>(PhantomData<N>);

impl<N: Degree> HeadExchange for SwapHeads<N> {
    const NAME: &'static str = "swap-heads";
    const SWAPS: bool = true;
    const RANKS: Option<usize> = N::FIXED;

    fn heads_per_rank(strategy: &'static str, q_heads: usize, ranks: usize) -> Result<usize, SupportError> {
        match ranks > 0 && q_heads > 0 && q_heads.is_multiple_of(ranks) {
            true => Ok(q_heads / ranks),
            false => Err(SupportError::Heads { strategy, q_heads, ranks }),
        }
    }
}

#[diagnostic::do_not_recommend]
impl<const Q: usize, N: Divides<Q>> SharesHeads<Q> for SwapHeads<N> {}

static_assertions::assert_eq_size!(KeepHeads, SwapHeads, ());
