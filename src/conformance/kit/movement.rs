//! Checks of dispatch, combine and roll, and of their adjoints, to the bit.

use std::sync::Arc;

use super::{Check, Failure, Kit, placement};
use crate::conformance::trial::{Numbers, documents, tokens_by_row};
use crate::error::{Error, Result};
use crate::handler::UntypedHandler;
use crate::layout::Batch;
use crate::mask::Mask;
use crate::oracle;
use crate::order::{DynShard, laid_out, token_by_token};
use crate::tensor::{Cpu, Matrix};

/// Features of a row.
const FEATURES: usize = 3;

/// What no roll brings.
const FILL: f32 = 7.5;

/// By how many tokens is rolled: to both sides, past chunks, past every document.
const OFFSETS: [i64; 4] = [1, -1, 3, 1000];

pub(super) fn check(kit: &mut Kit, batch: &Arc<dyn Batch>) -> Result<(), Failure> {
    let case = kit.case.on(&**batch);
    let placements = placement::of(&kit.subject, batch, &Mask::Causal);
    let placements = placements.map_err(|error| case.fails(Check::TokenCover, error))?;
    placement::check(&case, &placements)?;
    kit.passed(Check::Positions, 0.0);

    let found = kit.on_ranks(Check::RoundTrip, &case, &|comm| moved(kit.subject.handler(Cpu::new(1), comm)?, batch))?;
    if let Some(rank) = found.iter().position(|moved| moved.placement != placements[0].hash()) {
        let what = format!("rank {rank} deals the batch out in another way than it was dealt out before");
        return Err(case.fails(Check::TokenCover, what));
    }
    kit.passed(Check::TokenCover, 0.0);
    if let Some((check, what)) = found.iter().find_map(|moved| moved.wrong.first()) {
        return Err(case.fails(*check, what));
    }
    kit.passed(Check::RoundTrip, 0.0);
    kit.passed(Check::Roll, 0.0);

    let checks = [Check::DispatchAdjoint, Check::CombineAdjoint, Check::CombineAdjoint, Check::RollAdjoint];
    for (index, check) in checks.into_iter().enumerate() {
        let sides = |moved: &Moved| [moved.products[index].0, moved.products[index].1];
        for rank in &found {
            let [left, right] = [0, 1].map(|side| match sides(rank)[side] {
                Product::Whole(value) => value,
                Product::Share(_) => found.iter().map(|moved| sides(moved)[side].value()).sum(),
            });
            if left != right {
                let what = format!("the products are {left} and {right}, of whole numbers that add up exactly");
                return Err(case.fails(check, what));
            }
        }
        kit.passed(check, 0.0);
    }
    Ok(())
}

/// One side of an adjoint, as one rank knows it.
#[derive(Clone, Copy)]
enum Product {
    /// All of it.
    Whole(f64),
    /// What all ranks have adds up to it.
    Share(f64),
}

impl Product {
    fn value(self) -> f64 {
        match self {
            Product::Whole(value) | Product::Share(value) => value,
        }
    }
}

/// What one rank found.
struct Moved {
    wrong: Vec<(Check, String)>,
    /// Both sides of the adjoint of dispatch, of combine for summands and for wholes, and of roll.
    products: [(Product, Product); 4],
    /// Of the placement that the rank made.
    placement: u64,
}

fn moved(handler: UntypedHandler<Cpu<f32>>, batch: &Arc<dyn Batch>) -> Result<Moved> {
    let (rank, layout, handler) = (handler.rank(), handler.layout(), handler.by_ref());
    let placement = handler.place_for(batch.clone(), &[(Mask::Causal, 1)])?;
    let full = |values: &[f32]| laid_out(values, FEATURES, &**batch, layout);
    let combined = |shard: &DynShard<f32>| handler.combine(shard);
    let by_token = |shard: &DynShard<f32>| Ok::<_, Error>(token_by_token(&combined(shard)?, &**batch, layout));
    let documents = documents(&**batch);
    let count = batch.tokens() * FEATURES;
    let mut wrong = Vec::new();

    let plain = Numbers::new(1).whole(count);
    let mut poisoned = plain.clone();
    for document in &documents {
        let padding = document.start + document.valid..document.start + document.stored;
        for (i, value) in poisoned[padding.start * FEATURES..padding.end * FEATURES].iter_mut().enumerate() {
            // Different NaN, so that padding rows can be told apart.
            *value = f32::from_bits(0x7fc0_0001 + i as u32);
        }
    }
    let shard = handler.dispatch(&placement, &full(&poisoned)?)?;
    let tokens = tokens_by_row(&placement, rank);
    for (row, &token) in tokens.iter().enumerate() {
        let expected = &poisoned[token * FEATURES..(token + 1) * FEATURES];
        if !same(shard.matrix().row(row), expected) {
            wrong.push((Check::RoundTrip, format!("dispatch: row {row} of rank {rank} is not that of token {token}")));
            break;
        }
    }
    let found = by_token(&shard)?;
    wrong.extend(difference(&found, &poisoned).map(|token| {
        (Check::RoundTrip, format!("combine(dispatch(x)) differs from x at token {token}, on rank {rank}"))
    }));
    for offset in OFFSETS {
        let found = by_token(&handler.roll(&shard, offset, FILL)?)?;
        let expected = oracle::roll(&poisoned, FEATURES, &documents, -offset, FILL);
        wrong.extend(difference(&found, &expected).map(|token| {
            (Check::Roll, format!("rolled by {offset}, token {token} is not that of the oracle, on rank {rank}"))
        }));
    }

    let x = full(&plain)?;
    let of_x = handler.dispatch(&placement, &x)?;
    let y = Numbers::new(10 + rank as u64).whole(placement.rows() * FEATURES);
    let y = DynShard::new(Matrix::from_slice(&y, placement.rows(), FEATURES), placement.clone())?;
    // Gathering is both the adjoint of dispatch and what combine does.
    let of_y = combined(&y)?;
    let dispatch = (share(of_x.matrix(), y.matrix()), whole(&x, &of_y));
    let summand = full(&Numbers::new(50 + rank as u64).whole(count))?;
    let summed = handler.summed(&placement, &summand)?;
    let partial = (share(&of_y, &summand), share(y.matrix(), summed.matrix()));
    let cut = handler.dispatch(&placement, &x)?;
    let replicated = (whole(&of_y, &x), share(y.matrix(), cut.matrix()));
    let rolled = handler.roll(&of_x, OFFSETS[0], 0.0)?;
    let back = handler.roll_adjoint(&y, OFFSETS[0])?;
    let roll = (share(rolled.matrix(), y.matrix()), share(of_x.matrix(), back.matrix()));
    Ok(Moved { wrong, products: [dispatch, partial, replicated, roll], placement: placement.hash() })
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// The first token whose bits differ.
fn difference(found: &[f32], expected: &[f32]) -> Option<usize> {
    let mut rows = found.chunks(FEATURES).zip(expected.chunks(FEATURES));
    rows.position(|(found, expected)| !same(found, expected))
}

fn whole(x: &[f32], y: &[f32]) -> Product {
    Product::Whole(dot(x, y))
}

fn share(x: &[f32], y: &[f32]) -> Product {
    Product::Share(dot(x, y))
}

fn dot(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}
