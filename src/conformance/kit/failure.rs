//! What the kit checks, and how it says that something is wrong.

use std::fmt;

use crate::layout::Batch;
use crate::mask::Mask;
use crate::ops::attention::AttentionShape;
use crate::tensor::DType;

/// A check, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Check {
    /// The strategy is for as many ranks as were asked for, and some number of heads suits it.
    Degree,
    /// The order deals every token to exactly one rank, and all its functions say the same.
    TokenCover,
    /// A row knows the position of its token in its document.
    Positions,
    /// `combine(dispatch(x))` is `x`, to the bit, padding included.
    RoundTrip,
    /// `roll` is the oracle's, to the bit.
    Roll,
    /// `<dispatch(x), y> = <x, dispatch^T(y)>`.
    DispatchAdjoint,
    /// `<combine(y), g> = <y, combine^T(g)>`, for gradients that every rank holds and for summands.
    CombineAdjoint,
    /// `<roll(x), y> = <x, roll^T(y)>`.
    RollAdjoint,
    /// The rehearsal of all ranks' programs: every attended cell once, every message expected, no waiting for ever.
    ExactCover,
    /// Output and gradients in `f64` against the oracle.
    OracleF64,
    /// Output and gradients in `f32` against the oracle, measured by the error of `Single`.
    OracleF32,
    /// Twice the same bits.
    Determinism,
    /// What the plan predicts is what is counted, per rank.
    Prediction,
    /// Where a rank fails or falls silent in the middle of attention, every other rank gets an error with its name.
    FailingRank,
    /// Operands of another placement are refused.
    ForeignOperand,
    /// Loss and gradient of a training step are those of a single rank.
    TrainingStep,
}

impl Check {
    /// All checks of a strategy.
    pub const ALL: [Check; 15] = [
        Check::Degree,
        Check::TokenCover,
        Check::Positions,
        Check::RoundTrip,
        Check::Roll,
        Check::DispatchAdjoint,
        Check::CombineAdjoint,
        Check::RollAdjoint,
        Check::ExactCover,
        Check::OracleF64,
        Check::OracleF32,
        Check::Determinism,
        Check::Prediction,
        Check::FailingRank,
        Check::ForeignOperand,
    ];

    /// The check's name.
    pub fn name(self) -> &'static str {
        match self {
            Check::Degree => "degree",
            Check::TokenCover => "token cover",
            Check::Positions => "positions",
            Check::RoundTrip => "round trip",
            Check::Roll => "roll",
            Check::DispatchAdjoint => "adjoint of dispatch",
            Check::CombineAdjoint => "adjoint of combine",
            Check::RollAdjoint => "adjoint of roll",
            Check::ExactCover => "exact cover",
            Check::OracleF64 => "oracle in f64",
            Check::OracleF32 => "oracle in f32",
            Check::Determinism => "determinism",
            Check::Prediction => "prediction",
            Check::FailingRank => "failing rank",
            Check::ForeignOperand => "foreign operand",
            Check::TrainingStep => "training step",
        }
    }

    /// What a strategy that fails the check does wrong, and where to look.
    pub fn advice(self) -> &'static str {
        match self {
            Check::Degree => {
                "let the constructor give None for numbers of ranks that the strategy cannot do, and a grid of as many ranks \
                 as its degree whose groups (of SwapHeads) share some number of heads out"
            }
            Check::TokenCover => {
                "the functions rows, runs, token and locate of the TokenOrder must describe the same tokens, and \
                 every token must belong to one rank; every rank must make the same table of a batch"
            }
            Check::Positions | Check::RoundTrip | Check::Roll => {
                "rows are not where the TokenOrder says: look at its runs and at the order of tokens in a rank"
            }
            Check::DispatchAdjoint | Check::CombineAdjoint | Check::RollAdjoint => {
                "gradients do not go back to where values came from: a row is held twice, or by another rank than \
                 the TokenOrder's locate says"
            }
            Check::ExactCover => "the programs of the KvExchange leave something out or do it twice",
            Check::OracleF64 => {
                "the KvExchange computes other numbers than attention: a tile, a transfer or a merge is missing, \
                 doubled, or of the wrong rows; an error in out comes from the forward program, one in dq, dk or dv \
                 alone from the backward program"
            }
            Check::OracleF32 => "partial results lose digits: merge them in the accumulation type, in few steps",
            Check::Determinism => {
                "something depends on the order in which messages arrive or on what a buffer held before: write \
                 every row that is read, and add in a fixed order"
            }
            Check::Prediction => "AttentionPlan predicts from the programs: a rank sends what its program does not say",
            Check::FailingRank => "a rank went on, or waited, after another had failed: every post needs its wait",
            Check::ForeignOperand => "tensors of two placements must not meet in one call",
            Check::TrainingStep => {
                "sum losses and gradients over ranks, and divide by the labels of all ranks, not by those of one"
            }
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What was run when a check failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The strategy's name, or the learner's.
    pub strategy: &'static str,
    /// Number of ranks.
    pub ranks: usize,
    /// Layout and kernel; nothing for checks of a learner, which may have any.
    pub works: Option<(&'static str, &'static str)>,
    /// The documents as `valid` or `valid/stored` lengths; nothing for checks that have no batch.
    pub batch: Option<String>,
    /// The mask.
    pub mask: Option<Mask>,
    /// Head counts and sizes.
    pub shape: Option<AttentionShape>,
    /// Storage type.
    pub dtype: Option<DType>,
}

impl Case {
    /// Of a strategy or a learner, nothing else said.
    pub(crate) fn of(strategy: &'static str, ranks: usize) -> Case {
        Case { strategy, ranks, works: None, batch: None, mask: None, shape: None, dtype: None }
    }

    /// The same with a batch.
    pub(super) fn on(&self, batch: &dyn Batch) -> Case {
        let documents = (0..batch.documents()).map(|index| batch.document(index));
        let lengths = documents.map(|document| match document.valid == document.stored {
            true => document.valid.to_string(),
            false => format!("{}/{}", document.valid, document.stored),
        });
        let lengths: Vec<String> = lengths.collect();
        Case { batch: Some(format!("[{}]", lengths.join(", "))), ..self.clone() }
    }

    /// The failure of a check in this case.
    pub(crate) fn fails(&self, check: Check, what: impl fmt::Display) -> Failure {
        Failure { check, case: Box::new(self.clone()), what: what.to_string() }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { strategy, ranks, works, batch, mask, shape, dtype } = self;
        write!(f, "{strategy} on {ranks} ranks")?;
        if let Some((layout, kernel)) = works {
            write!(f, " with layout {layout} and kernel {kernel}")?;
        }
        if let Some(batch) = batch {
            write!(f, ", documents of {batch} tokens")?;
        }
        if let Some(mask) = mask {
            write!(f, ", mask {mask:?}")?;
        }
        if let Some(AttentionShape { q_heads, kv_heads, qk_dim, v_dim, .. }) = shape {
            write!(f, ", {q_heads} query and {kv_heads} key/value heads of {qk_dim} and {v_dim} features")?;
        }
        match dtype {
            Some(dtype) => write!(f, ", {dtype}"),
            None => Ok(()),
        }
    }
}

/// A check that failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("check \"{check}\" failed: {case}: {what}; {}", check.advice())]
pub struct Failure {
    /// The check.
    pub check: Check,
    /// What was run.
    pub case: Box<Case>,
    /// What came out, with the numbers.
    pub what: String,
}
