//! Head counts as types: known at compile time, or read from a configuration.

use std::fmt;
use std::ops::Rem;

use typenum::{Const, ToUInt, U, U0};

use crate::error::{ModelError, Result};
use crate::model::Config;

/// What the type of a model says about its heads.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an architecture: query heads must be a multiple of key/value heads",
    label = "each key/value head serves the same number of query heads",
    note = "the head counts must be at least 1 and at most 1024"
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

/// Head counts come from the configuration at run time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FromConfig;

/// `Q` query heads over `KV` key/value heads, known at compile time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FixedHeads<const Q: usize, const KV: usize>;

impl Architecture for FromConfig {
    const HEADS: Option<(usize, usize)> = None;
}

/// The number zero, as the result of a division without remainder.
pub trait Zero {}
impl Zero for U0 {}

#[diagnostic::do_not_recommend]
impl<const Q: usize, const KV: usize> Architecture for FixedHeads<Q, KV>
where
    Const<Q>: ToUInt,
    Const<KV>: ToUInt,
    U<Q>: Rem<U<KV>>,
    <U<Q> as Rem<U<KV>>>::Output: Zero,
{
    const HEADS: Option<(usize, usize)> = Some((Q, KV));
}
