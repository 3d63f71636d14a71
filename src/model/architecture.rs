//! Head counts as types: known at compile time, or read from a configuration.

use std::fmt;

use crate::degree::{Divides, Fixed};
use crate::error::{ModelError, Result};
use crate::heads::SharesHeads;
use crate::model::Config;
use crate::strategy::CpStrategy;

/// What the type of a model says about its heads.
///
/// An architecture of your own also needs [`HeadsFit`], for every strategy or for those that it is made for.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an architecture: query heads must be a multiple of key/value heads, both from 1 to 1024",
    label = "each key/value head serves the same number of query heads",
    note = "`FromConfig` takes the head counts, whatever they are, from the configuration"
)]
pub trait Architecture: Copy + fmt::Debug + Send + Sync + 'static {
    /// Query heads and key/value heads, if the type says them.
    const HEADS: Option<(usize, usize)>;

    /// Refuses a configuration with other head counts than the type says.
    fn check(config: &Config) -> Result<()> {
        match Self::HEADS {
            Some(heads) if heads != (config.heads, config.kv_heads) => Err(ModelError::Config(format!(
                "the model type has {} query heads and {} key/value heads, the configuration {} and {}: use `FromConfig`",
                heads.0, heads.1, config.heads, config.kv_heads
            ))
            .into()),
            _ => Ok(()),
        }
    }
}

/// Architectures whose heads strategy `H` can share out, as far as the compiler sees: strategies that keep heads take
/// any, those that exchange them need a multiple of the degree of the exchange.
///
/// Where the degree or the number of heads is not part of the types, this holds, and the constructor checks: with
/// [`SupportError::Heads`](crate::error::SupportError::Heads), which is the same sentence.
#[diagnostic::on_unimplemented(
    message = "`{H}` cannot run a model with `{Self}`: the number of query heads must be a multiple of the degree of the head exchange; ring and all-gather take any number",
    label = "these heads cannot be shared out evenly",
    note = "`Ulysses<N>` exchanges heads over all ranks, `RingUlysses<Outer, Inner>` over `Inner`; other strategies keep them"
)]
pub trait HeadsFit<H: CpStrategy> {}

/// Head counts come from the configuration at run time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FromConfig;

/// `Q` query heads over `KV` key/value heads, known at compile time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FixedHeads<const Q: usize, const KV: usize>;

impl Architecture for FromConfig {
    const HEADS: Option<(usize, usize)> = None;
}

#[diagnostic::do_not_recommend]
impl<H: CpStrategy> HeadsFit<H> for FromConfig {}

#[diagnostic::do_not_recommend]
impl<const Q: usize, const KV: usize> Architecture for FixedHeads<Q, KV>
where
    Fixed<KV>: Divides<Q>,
{
    const HEADS: Option<(usize, usize)> = Some((Q, KV));
}

#[diagnostic::do_not_recommend]
impl<const Q: usize, const KV: usize, H> HeadsFit<H> for FixedHeads<Q, KV>
where
    H: CpStrategy,
    H::Heads: SharesHeads<Q>,
{
}
