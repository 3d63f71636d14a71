//! Instructions of the typed path against hand-written code without generics, and of the handler that is chosen by
//! names, counted by callgrind.
//!
//! `.ci/instructions` runs this under valgrind, which counts inside of the function that the argument names, and fails
//! if the first two differ by 0.1 % or more.

use std::env;
use std::hint::black_box;
use std::mem::ManuallyDrop;

use context_parallel::layout::Thd;
use context_parallel::ops::attention::{Attention, AttentionShape};
use context_parallel::ops::rows::MoveRows;
use context_parallel::order::Rows;
use context_parallel::plan::{Step, TileCells};
use context_parallel::strategy::Single;
use context_parallel::tensor::{Cpu, Device, Matrix};

#[path = "../../common/mod.rs"]
mod common;

use common::{AttentionLayer, NamedLayer};

const TOKENS: usize = 256;

/// What the hand-written code works on: plain matrices and lists.
struct Plain {
    device: Cpu<f32>,
    shape: AttentionShape,
    tiles: <Cpu<f32> as Attention>::Tiles,
    rows: Rows,
    qkv: [Matrix<f32>; 3],
}

fn typed() -> AttentionLayer<Single, Thd> {
    let layer = AttentionLayer::new(Single, TOKENS).expect("a layer of one rank");
    // Once for the arena, so that only the work itself is counted.
    layer.forward().expect("one rank alone");
    layer
}

fn plain() -> Plain {
    let AttentionLayer { handler, shape, plan, qkv } = typed();
    let device = handler.device().clone();
    let pieces = match &plan.forward().steps[..] {
        [Step::Tile { pieces, .. }] => pieces.clone(),
        steps => panic!("one rank has one tile, not {steps:?}"),
    };
    Plain {
        shape,
        tiles: device.tiles(&TileCells::new(TOKENS, TOKENS, pieces)),
        rows: (0..TOKENS).into(),
        device,
        // Memory of its own: what the arena has is there for the work, as for the typed layer.
        qkv: qkv.map(|shard| Matrix::from_slice(shard.matrix(), shard.matrix().rows(), shard.matrix().cols())),
    }
}

#[inline(never)]
fn typed_attention(layer: AttentionLayer<Single, Thd>) -> f32 {
    // What was made before is not taken apart within what is counted, here and below.
    let layer = ManuallyDrop::new(layer);
    black_box(layer.forward().expect("one rank alone"))
}

fn named() -> NamedLayer {
    let layer = NamedLayer::new("single", TOKENS).expect("a layer of one rank");
    layer.forward().expect("one rank alone");
    layer
}

#[inline(never)]
fn named_attention(layer: NamedLayer) -> f32 {
    let layer = ManuallyDrop::new(layer);
    black_box(layer.forward().expect("one rank alone"))
}

#[inline(never)]
fn plain_attention(plain: Plain) -> f32 {
    let plain = ManuallyDrop::new(plain);
    let Plain { device, shape, tiles, rows, qkv: [q, k, v] } = &*plain;
    let mut kv: Matrix<f32> = device.matrix(TOKENS, 128);
    device.gather_rows(k.view(), rows, kv.view_mut().column_range(0..64));
    device.gather_rows(v.view(), rows, kv.view_mut().column_range(64..128));
    let mut out: Matrix<f32> = device.matrix(TOKENS, 128);
    let mut lse: Matrix<f32> = device.zero_matrix(TOKENS, 4);
    device.attention(shape, q.view(), kv.view(), tiles, out.view_mut(), lse.view_mut());
    let out = device.to_elem_matrix(out.view());
    black_box(out[0])
}

fn main() {
    let asked = env::args().nth(1);
    let value = match asked.as_deref() {
        Some("typed_attention") => typed_attention(typed()),
        Some("plain_attention") => plain_attention(plain()),
        Some("named_attention") => named_attention(named()),
        _ => panic!("{asked:?}: name typed_attention, plain_attention or named_attention"),
    };
    println!("{value}");
}
