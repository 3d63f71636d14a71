//! What the typed path costs over hand-written calls: launches, memory and allocations, counted; instructions by
//! valgrind, for which `.ci/cuda` runs this program with `cost typed N` and `cost plain N`.

use std::sync::Arc;

use context_parallel::attention::AttentionPlan;
use context_parallel::comm::threads::{self, ThreadComm, Waiting};
use context_parallel::handler::{CpHandler, ElemShard};
use context_parallel::layout::{Packed, Thd};
use context_parallel::mask::Mask;
use context_parallel::ops::attention::{Attention, AttentionShape};
use context_parallel::ops::rows::MoveRows;
use context_parallel::order::{Full, Natural, Rows};
use context_parallel::plan::{Step, TileCells};
use context_parallel::strategy::Single;
use context_parallel::tensor::cuda::CudaMemory;
use context_parallel::tensor::{Cuda, Device, Matrix};

use super::Test;
use super::counter::count;
use super::counts::counted;
use super::ranks::device;

pub const TESTS: &[Test] = &[("the typed path costs what hand-written calls cost", typed_costs_nothing)];

const TOKENS: usize = 192;

type Gpu = Cuda<f32>;

/// A handler with a plan, queries, keys and values on the GPU.
struct Typed {
    handler: CpHandler<Single, Thd, Gpu, ThreadComm<CudaMemory>>,
    plan: Arc<AttentionPlan<Natural, Thd>>,
    shape: AttentionShape,
    qkv: [Arc<ElemShard<Single, Thd, Gpu>>; 3],
}

/// The same without any of the crate's types above ops.
struct Plain {
    device: Gpu,
    shape: AttentionShape,
    tiles: <Gpu as Attention>::Tiles,
    rows: <Gpu as MoveRows>::Rows,
    qkv: [Matrix<f32, CudaMemory>; 3],
}

impl Typed {
    fn new() -> Self {
        let comm = threads::run_on::<CudaMemory, _, _>(Waiting::default(), 1, Ok).unwrap().remove(0);
        let handler = CpHandler::<Single, Thd, Gpu, _>::new(Single, device(), comm).unwrap();
        let shape = AttentionShape { q_heads: 4, kv_heads: 2, qk_dim: 32, v_dim: 32, scale: 32f64.powf(-0.5) };
        let batch = Arc::new(Packed::from_lengths(&[TOKENS]).unwrap());
        let placement = handler.place(batch.clone()).unwrap();
        let plan = handler.plan(&placement, &Mask::Causal).unwrap();
        let shard = |width: usize| {
            let values: Vec<f32> = (0..TOKENS * width).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
            let rows = Matrix::new(handler.device().upload(&values), TOKENS, width);
            let whole = Full::<Thd, f32, CudaMemory>::new(rows, batch.clone()).unwrap();
            Arc::new(handler.dispatch(&placement, &whole).unwrap())
        };
        let qkv = [shape.q_width(), shape.k_width(), shape.v_width()].map(shard);
        Typed { handler, plan, shape, qkv }
    }

    fn forward(&self) -> Matrix<f32, CudaMemory> {
        let [q, k, v] = &self.qkv;
        let (out, _) = self.handler.attend(&self.plan, &self.shape, q, k, v).unwrap();
        out.into_matrix()
    }
}

impl Plain {
    fn new() -> Self {
        let Typed { handler, plan, shape, qkv } = Typed::new();
        let device = handler.device().clone();
        let pieces = match &plan.forward().steps[..] {
            [Step::Tile { pieces, .. }] => pieces.clone(),
            steps => panic!("one rank has one tile, not {steps:?}"),
        };
        let tiles = device.tiles(&TileCells::new(TOKENS, TOKENS, pieces));
        let rows = device.rows(&Rows::from(0..TOKENS));
        let qkv = qkv.map(|shard| shard.matrix().clone());
        Plain { device, shape, tiles, rows, qkv }
    }

    fn forward(&self) -> Matrix<f32, CudaMemory> {
        let Plain { device, shape, tiles, rows, qkv: [q, k, v] } = self;
        let mut kv: Matrix<f32, CudaMemory> = device.matrix(TOKENS, shape.k_width() + shape.v_width());
        device.gather_rows(k.view(), rows, kv.view_mut().column_range(0..shape.k_width()));
        device.gather_rows(
            v.view(),
            rows,
            kv.view_mut().column_range(shape.k_width()..shape.k_width() + shape.v_width()),
        );
        let mut out = device.matrix(TOKENS, shape.q_heads * shape.v_dim);
        let mut lse = device.zero_matrix(TOKENS, shape.q_heads);
        device.attention(shape, q.view(), kv.view(), tiles, out.view_mut(), lse.view_mut());
        drop(kv);
        device.to_elem_matrix(out.view())
    }
}

/// Runs a path so many times, as an argument asks; gives one number of the output.
pub fn run(path: &str, times: usize) {
    let mut outputs: Vec<f32> = Vec::new();
    match path {
        "typed" => {
            let typed = Typed::new();
            (0..times).for_each(|_| outputs.push(typed.handler.device().read(&typed.forward()).unwrap()[0]));
        }
        _ => {
            let plain = Plain::new();
            (0..times).for_each(|_| outputs.push(plain.device.read(&plain.forward()).unwrap()[0]));
        }
    }
    println!("{path}: {outputs:?}");
}

/// What a call costs the second time: launches, allocations of device memory, bytes more in use at the most,
/// allocations of the host.
fn cost(device: &Gpu, forward: impl Fn() -> Matrix<f32, CudaMemory>) -> (Vec<f32>, [u64; 3], usize) {
    let first = forward();
    device.read(&first).unwrap();
    drop(first);
    let held = device.ledger().mark();
    let (launches, before) = (counted("launches").unwrap_or(0), device.memory().allocations);
    let mut out = None;
    let on_host = count(|| out = Some(forward()));
    let launched = counted("launches").unwrap_or(0) - launches;
    let allocated = device.memory().allocations - before;
    let found = device.read(&out.unwrap()).unwrap();
    (found, [launched, allocated, (device.ledger().peak() - held) as u64], on_host)
}

fn typed_costs_nothing() {
    let (typed, plain) = (Typed::new(), Plain::new());
    let (found, costs, on_host) = cost(typed.handler.device(), || typed.forward());
    let (expected, plain_costs, plain_on_host) = cost(&plain.device, || plain.forward());
    println!("  launches, allocations, bytes: {costs:?}, hand-written {plain_costs:?}");
    println!("  allocations of the host: {on_host}, hand-written {plain_on_host}");
    assert_eq!(found, expected, "the same bits");
    assert_eq!(costs, plain_costs);
    assert_eq!(costs[1], 0);
}
