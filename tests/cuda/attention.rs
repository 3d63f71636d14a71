//! Attention against the processor, and by which kernels it was computed: those for Hopper on Hopper, those for tensor
//! cores or those that go element by element elsewhere, and where matrices are not aligned.

use std::process::Command;

use context_parallel::error::Error;
use context_parallel::kernel::KernelKind;
use context_parallel::model::{Config, DynModel, ParameterList, Sizes, init};
use context_parallel::ops::attention::{Attention, AttentionShape};
use context_parallel::oracle::relative_error;
use context_parallel::order::Run;
use context_parallel::plan::{Piece, TileCells};
use context_parallel::tensor::cuda::CudaFloat;
use context_parallel::tensor::{Cpu, Cuda, Device, Element, Float};
use half::{bf16, f16};

use super::Test;
use super::counts::{is_hopper, launches_of};
use super::ops::{Found, Wide, numbers, same_bits, wide};
use super::ranks::device;

pub const TESTS: &[Test] = &[
    ("attention in f32", || attention::<f32>(&[(5, 3), (64, 64), (96, 40)], Rows::Aligned, 1e-6)),
    ("attention in bf16", || {
        attention::<bf16>(&[(7, 9), (64, 64), (128, 128), (192, 128), (256, 256)], Rows::Aligned, 1e-2)
    }),
    ("attention in f16", || attention::<f16>(&[(64, 64), (128, 128), (192, 128), (256, 256)], Rows::Aligned, 1.5e-3)),
    ("attention of rows that begin anywhere", || attention::<bf16>(&[(64, 64)], Rows::Anywhere, 1e-2)),
    ("attention whose scores are negated", negated),
    ("attention of heads that are too large is refused", too_large),
];

/// Where rows of operands and results begin.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rows {
    /// At multiples of 16 bytes.
    Aligned,
    Anywhere,
}

/// Which kernels compute a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Launched {
    /// Forward pass, gradient of keys and values, gradient of queries.
    hopper: [u64; 3],
    tensor_cores: [u64; 3],
    general: [u64; 3],
}

impl Launched {
    /// How often each was launched so far; nothing on a GPU, which counts nothing.
    fn now() -> Option<Self> {
        let passes = ["attention_forward", "attention_backward_keys", "attention_backward_queries"];
        let of = |kind: &str| -> Option<[u64; 3]> {
            let counts = passes.map(|pass| launches_of(&format!("{pass}{kind}_")));
            counts.iter().all(Option::is_some).then(|| counts.map(Option::unwrap_or_default))
        };
        let (hopper, general) = (of("_sm90")?, of("_general")?);
        let all = of("")?;
        let tensor_cores = std::array::from_fn(|pass| all[pass] - hopper[pass] - general[pass]);
        Some(Launched { hopper, tensor_cores, general })
    }

    fn since(self, before: Self) -> Self {
        let less = |now: [u64; 3], before: [u64; 3]| std::array::from_fn(|pass| now[pass] - before[pass]);
        Launched {
            hopper: less(self.hopper, before.hopper),
            tensor_cores: less(self.tensor_cores, before.tensor_cores),
            general: less(self.general, before.general),
        }
    }

    /// What a forward and a backward pass must launch.
    fn expected<T: CudaFloat>(shape: &AttentionShape, cells: &TileCells, rows: Rows) -> Self {
        let (qk, v) = (shape.qk_dim, shape.v_dim);
        let is_sized = [(64, 64), (128, 128), (192, 128), (256, 256)].contains(&(qk, v));
        let has_products = is_sized && rows == Rows::Aligned && T::DTYPE.size() == 2;
        // Without keys there is nothing for a tensor map to describe, and no gradient.
        let is_hopper = is_hopper() && shape.scale > 0.0 && cells.keys > 0;
        let passes = [1, u64::from(!cells.pieces.is_empty()), u64::from(cells.keys > 0)];
        let none = Launched::default();
        match (has_products, is_hopper) {
            (false, _) => Launched { general: passes, ..none },
            (true, false) => Launched { tensor_cores: passes, ..none },
            (true, true) if qk == 256 => {
                Launched { hopper: [passes[0], 0, passes[2]], tensor_cores: [0, passes[1], 0], ..none }
            }
            (true, true) => Launched { hopper: passes, ..none },
        }
    }
}

/// Causal documents, a window, two pieces of a row in one tile, tiles of queries that attend nothing, and no keys.
fn tiles() -> Vec<TileCells> {
    let run = |start, len| Run { start, step: 1, len };
    let piece = |q_row, k_row, q: Run, k: Run, d_lo, d_hi| Piece { q_row, k_row, q, k, d_lo, d_hi };
    let document = |row, len| piece(row, row, run(row, len), run(row, len), -1000, 0);
    vec![
        TileCells::new(150, 150, [document(0, 70), document(75, 3), document(78, 72)]),
        TileCells::new(100, 130, [piece(0, 0, run(30, 100), run(0, 130), -20, 7)]),
        TileCells::new(
            40,
            60,
            [piece(0, 0, run(100, 40), run(90, 20), -1000, 0), piece(0, 40, run(100, 40), run(120, 20), -1000, 0)],
        ),
        TileCells::new(260, 40, [document(0, 40)]),
        TileCells::new(3, 0, []),
    ]
}

fn attention<T: CudaFloat>(dims: &[(usize, usize)], rows: Rows, bound: f64) {
    let mut worst = 0f64;
    for &(qk_dim, v_dim) in dims {
        let shape = AttentionShape { q_heads: 4, kv_heads: 2, qk_dim, v_dim, scale: 1.0 / (qk_dim as f64).sqrt() };
        for cells in tiles() {
            worst = worst.max(compare::<T>(&shape, &cells, rows, bound));
        }
    }
    println!("  worst error {worst:.1e}{}", if Launched::now().is_some() { "" } else { ", kernels not counted" });
}

/// The worst error of attention and its gradients.
fn compare<T: CudaFloat>(shape: &AttentionShape, cells: &TileCells, rows: Rows, bound: f64) -> f64 {
    let (qk_dim, v_dim) = (shape.qk_dim, shape.v_dim);
    let expected = attend::<Cpu<T>>(&Cpu::new(1), shape, cells, rows);
    let before = Launched::now();
    let found = attend(&device::<T>(), shape, cells, rows);
    if let (Some(before), Some(now)) = (before, Launched::now()) {
        let expected = Launched::expected::<T>(shape, cells, rows);
        assert_eq!(now.since(before), expected, "kernels of {qk_dim} x {v_dim}, {} x {}", cells.queries, cells.keys);
    }
    let again = attend(&device::<T>(), shape, cells, rows);
    assert!(same_bits(&found, &again), "the same bits again, {qk_dim} x {v_dim}");
    let mut worst = 0f64;
    for ((name, expected), (_, found)) in expected.iter().zip(&found) {
        let infinite = |values: &[f64]| values.iter().map(|x| x.is_infinite()).collect::<Vec<_>>();
        assert_eq!(infinite(expected), infinite(found), "{name} of {qk_dim} x {v_dim}");
        let finite = |values: &[f64]| values.iter().map(|x| if x.is_finite() { *x } else { 0.0 }).collect::<Vec<_>>();
        let error = relative_error(&finite(found), &finite(expected), 0.0);
        assert!(error <= bound, "{name} of {qk_dim} x {v_dim}: {error:.1e}");
        worst = worst.max(error);
    }
    worst
}

/// A factor below 0 is for kernels that compare scores after it.
fn negated() {
    let shape = AttentionShape { q_heads: 2, kv_heads: 1, qk_dim: 64, v_dim: 64, scale: -0.125 };
    compare::<bf16>(&shape, &tiles()[0], Rows::Aligned, 1e-2);
}

/// Before anything is computed: the device goes on without an error.
fn too_large() {
    let gpu: Cuda<f32> = device();
    let refused = |error: Error| {
        assert!(error.is_input(), "{error}");
        let message = error.to_string();
        assert!(message.contains("heads of 320 features") && message.contains("256 at most"), "{message}");
    };
    let shape = AttentionShape { q_heads: 1, kv_heads: 1, qk_dim: 320, v_dim: 320, scale: 1.0 };
    let flash = KernelKind::Flash.object::<Cuda<f32>>();
    refused(flash.supports(&gpu, &shape).unwrap_err());
    let sizes = Sizes { vocab_size: 61, hidden_size: 320, intermediate_size: 48, layers: 1, heads: 1, kv_heads: 1 };
    let config = Config::llama(sizes).unwrap();
    let master = init::fresh(&gpu, &config, &ParameterList::new(&config), 7).unwrap();
    refused(DynModel::from_master(gpu.clone(), &config, &master, flash).map(drop).unwrap_err());
    let run = |command: &str| {
        let run = Command::new(env!("CARGO_BIN_EXE_context-parallel")).args(command.split(' ')).output().unwrap();
        (run.status.code(), String::from_utf8_lossy(&run.stderr).into_owned())
    };
    let (code, said) = run("bench attention --device cuda --heads 1 --seq 16 --head-dim 320");
    assert!(code == Some(2) && said.contains("heads of 320 features"), "{code:?}: {said}");
    assert!(gpu.read(&gpu.upload(&[1.0f32])).is_ok());
    assert_eq!(gpu.supports(&AttentionShape { qk_dim: 256, v_dim: 256, ..shape }), Ok(()));
}

fn attend<D: Attention<Acc = f32>>(device: &D, shape: &AttentionShape, cells: &TileCells, rows: Rows) -> Found
where
    D::Elem: Float<Acc = f32>,
{
    let (queries, keys) = (cells.queries, cells.keys);
    let elems = |seed, count, cols| wide_as(rows, device, &numbers::<D::Elem>(seed, count * cols), count, cols);
    let results = |seed, count, cols| wide_as(rows, device, &numbers::<f32>(seed, count * cols), count, cols);
    // Numbers of rows and heads may be anywhere.
    let sums = |seed, rows, cols| Wide::new(device, &numbers::<f32>(seed, rows * cols), rows, cols);
    let (q, kv) = (elems(1, queries, shape.q_width()), elems(2, keys, shape.kv_width()));
    let dout = elems(3, queries, shape.out_width());
    let (mut out, mut lse) = (results(4, queries, shape.out_width()), sums(5, queries, shape.q_heads));
    let mut delta = sums(6, queries, shape.q_heads);
    let (mut dq, mut dkv) = (results(7, queries, shape.q_width()), results(8, keys, shape.kv_width()));
    let tiles = device.tiles(cells);
    device.attention(shape, q.view(), kv.view(), &tiles, out.view_mut(), lse.view_mut());
    device.attention_delta(shape, out.view(), dout.view(), delta.view_mut());
    let (dq_view, dkv_view) = (dq.view_mut(), dkv.view_mut());
    let (lse_view, delta_view) = (lse.view(), delta.view());
    device.attention_backward(shape, q.view(), kv.view(), &tiles, dout.view(), lse_view, delta_view, dq_view, dkv_view);
    let (mut merged, mut merged_lse) = (sums(9, queries, shape.out_width()), sums(10, queries, shape.q_heads));
    device.attention_merge(shape, merged.view_mut(), merged_lse.view_mut(), out.view(), lse.view());
    let results = [("out", &out), ("lse", &lse), ("delta", &delta), ("dq", &dq), ("dkv", &dkv), ("merged", &merged)];
    results.map(|(name, result)| (name, wide(&result.read(device)))).to_vec()
}

fn wide_as<T: Element, D: Device>(
    rows: Rows,
    device: &D,
    values: &[T],
    count: usize,
    cols: usize,
) -> Wide<T, D::Storage> {
    match rows {
        Rows::Aligned => Wide::aligned(device, values, count, cols),
        Rows::Anywhere => Wide::new(device, values, count, cols),
    }
}
