//! Strategies against a single rank: the same bits where that is promised, bounded errors elsewhere, and a strategy
//! of one's own made of parts.

use std::sync::Arc;

use context_parallel::attention::AttentionPlan;
use context_parallel::comm::decorate::traffic::Counted;
use context_parallel::comm::{Communicator, threads};
use context_parallel::degree::Runtime;
use context_parallel::error::Result;
use context_parallel::handler::{CpHandler, UntypedHandler};
use context_parallel::heads::KeepHeads;
use context_parallel::kernel::{Flash, Kernel, KernelKind, KernelOn, LogSumExp, TileGradients, TileOperands, Unfused};
use context_parallel::layout::{Batch, Bshd, Layout, LayoutKind, Packed, Sbhd, Thd};
use context_parallel::mask::{Mask, Slice, SliceKind};
use context_parallel::model::init::Normal;
use context_parallel::model::inputs::Inputs;
use context_parallel::model::{Config, GptModel, ParameterList, Sizes, init};
use context_parallel::ops::Attends;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::oracle;
use context_parallel::order::{Contiguous, Full, Placement, Shard, Striped, Zigzag, laid_out};
use context_parallel::plan::{Program, Wire};
use context_parallel::solve::stages::{Merging, StageCosts, StageCount, Staging};
use context_parallel::strategy::{
    AllGather, CastKv, CpStrategy, DynStrategy, Dynamic, LocalKv, Magi, Ring, RingUlysses, Row, Single, Supports,
    Ulysses, object,
};
use context_parallel::tensor::{AccMut, AccRef, Cpu, Device};
use context_parallel::train::data::{IGNORED, Recall, Source, TokenBatch};
use context_parallel::train::learner::{AdamwOptions, GptLearner};
use context_parallel::train::trainer::Learner;
use half::bf16;

/// A strategy of this test: zigzag order, each rank receives just the rows that it attends.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cast(usize);

impl CpStrategy for Cast {
    type Order = Zigzag;
    type Heads = KeepHeads;
    type Kv = CastKv;
    const NAME: &'static str = "cast";
    fn degree(&self) -> usize {
        self.0
    }
}
impl Row<Bshd, Flash> for Cast {}
impl Row<Thd, Flash> for Cast {}

/// The ring with its exchange left out.
#[derive(Clone, Copy, Debug, PartialEq)]
struct NoExchange(usize);

impl CpStrategy for NoExchange {
    type Order = Zigzag;
    type Heads = KeepHeads;
    type Kv = LocalKv;
    const NAME: &'static str = "no-exchange";
    fn degree(&self) -> usize {
        self.0
    }
}
impl Row<Thd, Flash> for NoExchange {}

fn config() -> Config {
    let sizes = Sizes { vocab_size: 41, hidden_size: 32, intermediate_size: 48, layers: 2, heads: 4, kv_heads: 2 };
    let mut config = Config::llama(sizes).unwrap();
    config.initializer_range = 0.2;
    config
}

/// Logits of every token, sequence by sequence.
fn logits<H, L, K>(strategy: H, lengths: &[usize]) -> Vec<f32>
where
    H: Supports<L, K>,
    L: Layout,
    K: KernelOn<Cpu<f32>>,
{
    let config = config();
    let total: usize = lengths.iter().sum();
    let tokens: Vec<i64> = (0..total as i64).map(|i| (i * i + 5 * i) % 41).collect();
    let logits = threads::run(strategy.degree(), |comm| {
        let device = Cpu::<f32>::new(1);
        let handler = CpHandler::<H, L, _, _>::new(strategy.clone(), device.clone(), comm)?;
        let model = GptModel::<H, L, K>::new(device.clone(), &config, 3)?;
        let batch = Arc::new(L::batch_of(lengths)?);
        let inputs = Inputs::new(&handler, batch, &tokens, &tokens)?;
        let activations = model.forward(&handler, &inputs.tokens)?;
        let shard = context_parallel::order::Shard::new(model.logits(&activations), activations.placement().clone())?;
        Ok(handler.combine(&shard)?.to_batch_first())
    });
    logits.unwrap().swap_remove(0)
}

fn same_bits<H, L: Layout, K: KernelOn<Cpu<f32>>>(strategy: H, lengths: &[usize])
where
    Single: Supports<L, K>,
    H: Supports<L, K>,
{
    let alone = logits::<Single, L, K>(Single, lengths);
    let spread = logits::<H, L, K>(strategy.clone(), lengths);
    let differ = alone.iter().zip(&spread).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    assert_eq!(differ, 0, "{strategy:?} of {lengths:?}: {differ} of {} logits differ", alone.len());
}

#[test]
fn all_gather_has_the_bits_of_a_single_rank() {
    for n in [1, 2, 3, 5, 8].map(Runtime) {
        same_bits::<_, Thd, Flash>(AllGather::<_, Zigzag>::new(n), &[300, 1, 0, 7, 290]);
        same_bits::<_, Bshd, Flash>(AllGather::<_, Striped>::new(n), &[270, 270]);
        same_bits::<_, Sbhd, Flash>(AllGather::<_, Contiguous>::new(n), &[270, 270]);
        same_bits::<_, Sbhd, Unfused>(AllGather::<_, Zigzag>::new(n), &[40, 40, 40]);
        same_bits::<_, Bshd, Unfused>(AllGather::<_, Striped>::new(n), &[300]);
    }
}

#[test]
fn ulysses_has_the_bits_of_a_single_rank() {
    // Four query heads, two key/value heads: on 4 ranks neighbours share a key/value head.
    for n in [1, 2, 4].map(Runtime) {
        same_bits::<_, Thd, Flash>(Ulysses::<_, Zigzag>::new(n), &[300, 1, 0, 7, 290]);
        same_bits::<_, Bshd, Flash>(Ulysses::<_, Striped>::new(n), &[270, 270]);
        same_bits::<_, Sbhd, Flash>(Ulysses::<_, Contiguous>::new(n), &[270, 270]);
        same_bits::<_, Sbhd, Unfused>(Ulysses::<_, Zigzag>::new(n), &[40, 40, 40]);
        same_bits::<_, Bshd, Unfused>(Ulysses::<_, Striped>::new(n), &[300]);
    }
}

/// Queries, keys, values and output gradient; `NaN` where a row is padding.
fn operands(batch: &Packed, shape: &AttentionShape) -> [Vec<f32>; 4] {
    let mut normal = Normal::new(9, 0);
    let widths = [shape.q_width(), shape.k_width(), shape.v_width(), shape.out_width()];
    widths.map(|width| {
        let mut values = vec![f32::NAN; batch.tokens() * width];
        for index in 0..batch.documents() {
            for token in batch.document(index).valid_range() {
                values[token * width..(token + 1) * width].fill_with(|| normal.draw() as f32);
            }
        }
        values
    })
}

/// What attention is counted under.
const OPERATIONS: [&str; 4] = ["attention keys", "attention gradients", "attention heads", "attention head gradients"];

/// Errors of out, dq, dk, dv against the oracle; predicted bytes are compared with counted ones on the way.
fn attention_errors<H: Supports<Thd, Flash>>(strategy: H, batch: &Packed, mask: &Mask) -> [f64; 4] {
    attention_errors_with(strategy, batch, mask, (4, 2))
}

fn attention_errors_with<H: Supports<Thd, Flash>>(
    strategy: H,
    batch: &Packed,
    mask: &Mask,
    heads: (usize, usize),
) -> [f64; 4] {
    errors(&attention(strategy, batch, mask, &shape(heads)), batch, mask, heads)
}

/// Errors of out, dq, dk, dv against the oracle.
fn errors(found: &[Vec<f32>], batch: &Packed, mask: &Mask, heads: (usize, usize)) -> [f64; 4] {
    let shape = shape(heads);
    let (valid, stored): (Vec<usize>, Vec<usize>) =
        (0..batch.documents()).map(|i| batch.document(i)).map(|document| (document.valid, document.stored)).unzip();
    let documents = oracle::documents(&valid, &stored);
    let attends = oracle::attends(mask, &documents);
    let operands = operands(batch, &shape).map(|x| {
        let clean = |&x: &f32| if x.is_nan() { 0.0 } else { f64::from(x) };
        x.iter().map(clean).collect::<Vec<f64>>()
    });
    let heads = oracle::Heads { query: heads.0, key_value: heads.1, qk_dim: 8, v_dim: 12, scale: 0.35 };
    let answer = oracle::Answer::new(batch.tokens(), heads, &*attends, operands.each_ref().map(Vec::as_slice));
    let found: Vec<Vec<f64>> = found.iter().map(|x| x.iter().map(|&x| f64::from(x)).collect()).collect();
    answer.errors(std::array::from_fn(|i| found[i].as_slice()))
}

fn shape((q_heads, kv_heads): (usize, usize)) -> AttentionShape {
    AttentionShape { q_heads, kv_heads, qk_dim: 8, v_dim: 12, scale: 0.35 }
}

/// Output and gradients of [`operands`], of all tokens. Bytes and memory are those that the plan predicts.
fn attention<H: Supports<Thd, Flash>>(
    strategy: H,
    batch: &Packed,
    mask: &Mask,
    shape: &AttentionShape,
) -> Vec<Vec<f32>> {
    attention_of(object(strategy), batch, mask, shape)
}

fn attention_of(strategy: Arc<dyn DynStrategy>, batch: &Packed, mask: &Mask, shape: &AttentionShape) -> Vec<Vec<f32>> {
    let operands = operands(batch, shape);
    let batch: Arc<dyn Batch> = Arc::new(batch.clone());
    threads::run(strategy.degree(), |comm| {
        let device = Cpu::<f32>::new(1);
        let comm = Counted::new(comm);
        let traffic = comm.traffic();
        let handler = UntypedHandler::new(strategy.clone(), LayoutKind::Thd, device.clone(), Box::new(comm))?;
        let by_ref = handler.by_ref();
        let placement = handler.place_for(batch.clone(), &[(Mask::Causal, 1)])?;
        let widths = [shape.q_width(), shape.k_width(), shape.v_width(), shape.out_width()];
        let mut shards = Vec::new();
        for (values, width) in operands.iter().zip(widths) {
            shards.push(by_ref.dispatch(&placement, &laid_out(values, width, &*batch, LayoutKind::Thd)?)?);
        }
        let plan = handler.plan(&placement, mask)?;
        let qkv = [&shards[0], &shards[1], &shards[2]];
        let (ledger, predicted) = (device.ledger(), plan.peak_bytes::<Flash, Cpu<f32>>(shape)?);
        let held = ledger.mark();
        let (out, core) = by_ref.core_attn(KernelKind::Flash.object(), &plan, shape, qkv)?;
        let peak_forward = ledger.peak() - held;
        let held = ledger.mark();
        let [dq, dk, dv] = by_ref.core_attn_backward(&plan, qkv, &core, &shards[3])?;
        assert_eq!((peak_forward, ledger.peak() - held), predicted, "peak memory of {strategy:?}");
        let mut whole = Vec::new();
        for shard in [out, dq, dk, dv] {
            whole.push(by_ref.combine(&shard)?.to_vec());
        }
        let (forward, backward) = plan.bytes_sent::<Cpu<f32>>(shape)?;
        let moved = |operation| traffic.bytes_in(operation);
        let counted = OPERATIONS.into_iter().map(moved).sum::<u64>();
        assert_eq!(counted, (forward + backward) as u64, "bytes of {strategy:?}");
        Ok(whole)
    })
    .unwrap()
    .swap_remove(0)
}

fn masks() -> [Mask; 4] {
    let window = |left, right| Mask::Window { left, right };
    [Mask::Causal, Mask::Full, window(Some(0), Some(0)), window(Some(7), Some(2))]
}

#[test]
fn padding_of_nan_never_reaches_a_real_row() {
    let batch = Packed::new(&[13, 0, 1, 30], &[16, 3, 1, 37]).unwrap();
    for mask in masks() {
        for ranks in [1, 2, 3, 4] {
            for errors in [
                attention_errors(Ring::<_, Zigzag>::new(Runtime(ranks)), &batch, &mask),
                attention_errors(Ring::<_, Striped>::new(Runtime(ranks)), &batch, &mask),
                attention_errors(AllGather::<_, Contiguous>::new(Runtime(ranks)), &batch, &mask),
                attention_errors(Cast(ranks), &batch, &mask),
                attention_errors(Magi::new(Runtime(ranks)), &batch, &mask),
                attention_errors(Dynamic::new(Runtime(ranks)), &batch, &mask),
            ] {
                assert!(errors.iter().all(|&error| error < 2e-6), "{mask:?} on {ranks}: {errors:?}");
            }
        }
    }
}

/// Costs at which attending the own keys last is quickest, in three stages. What returns does not count forward.
fn own_keys_last() -> Staging {
    let free = StageCosts { cell: 1000, fetched: 0, returned: 1_000_000, message: 0, launch: 0, merged: 0 };
    Staging { forward: free, backward: free, ..StageCount::Exactly(3).into() }
}

#[test]
fn own_keys_hide_the_return_of_gradients_where_that_is_quicker() {
    let plan = threads::run(2, |comm| {
        let strategy = Magi::new(Runtime(2)).with_stages(own_keys_last());
        let handler = CpHandler::<Magi, Thd>::new(strategy, Cpu::new(1), comm)?;
        let placement = handler.place(Packed::from_lengths(&[200])?)?;
        let plan = handler.plan(&placement, &Mask::Full)?;
        let slots = |program: &Program| program.tiles().map(|(slot, _)| slot).collect::<Vec<_>>();
        Ok([slots(plan.forward()), slots(plan.backward())])
    });
    assert!(plan.unwrap().iter().all(|slots| *slots == [vec![0, 1, 2, 3], vec![1, 2, 3, 0]]));
}

/// [`Flash`] that says it saves something of each tile.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Saving;

impl LogSumExp for Saving {}
impl Row<Thd, Saving> for Magi {}

impl Kernel for Saving {
    const NAME: &'static str = "saving";
}

impl<D: Attends> KernelOn<D> for Saving {
    type Saved = usize;

    fn forward(d: &D, tile: TileOperands<'_, D>, out: AccMut<'_, D>, lse: AccMut<'_, D>) -> usize {
        let cells = tile.cells.pieces.len();
        Flash::forward(d, tile, out, lse);
        cells
    }

    fn backward(d: &D, tile: TileOperands<'_, D>, saved: &usize, gradients: TileGradients<'_, D>) {
        assert_eq!(*saved, tile.cells.pieces.len());
        Flash::backward(d, tile, &(), gradients);
    }

    fn merge(
        d: &D,
        shape: &AttentionShape,
        out: AccMut<'_, D>,
        lse: AccMut<'_, D>,
        part: (AccRef<'_, D>, AccRef<'_, D>),
    ) -> Result<()> {
        Flash::merge(d, shape, out, lse, part)
    }
}

#[test]
fn a_kernel_that_saves_its_tiles_gets_them_back_or_an_error() {
    let run = |staging: Staging| {
        threads::run(2, |comm| {
            let device = Cpu::<f32>::new(1);
            let strategy = Magi::new(Runtime(2)).with_stages(staging);
            let handler = CpHandler::<Magi, Thd, _, _>::new(strategy, device.clone(), comm)?;
            let batch = Arc::new(Packed::from_lengths(&[64])?);
            let placement = handler.place(batch.clone())?;
            let x = Full::<Thd, f32>::from_batch_first(&[0.5; 64 * 4], 4, batch)?;
            let x = Arc::new(handler.dispatch(&placement, &x)?);
            let shape = AttentionShape { q_heads: 1, kv_heads: 1, qk_dim: 4, v_dim: 4, scale: 0.5 };
            let plan = handler.plan(&placement, &Mask::Full)?;
            let (_, attended) = handler.attend_with::<Saving>(&plan, &shape, &x, &x, &x)?;
            attended.backward(&handler, &x).map(drop)
        })
    };
    let costs = StageCosts { returned: 0, ..StageCosts::FORWARD };
    run(Staging { forward: costs, backward: costs, ..StageCount::Exactly(2).into() }).unwrap();
    // Parts are the same in both directions, whatever the stages.
    run(Staging { merging: Merging::Parts(3), ..own_keys_last() }).unwrap();
    let message = run(own_keys_last()).unwrap_err().to_string();
    assert!(message.contains("other tiles backward than forward"), "{message}");
}

#[test]
fn stages_change_neither_numbers_nor_traffic() {
    let batch = Packed::new(&[13, 0, 1, 90, 140], &[16, 3, 1, 97, 140]).unwrap();
    for mask in masks() {
        for ranks in [2, 3, 5] {
            let counts = [1, 2, 3, 7].map(|count| Staging::from(StageCount::Exactly(count)));
            let parts = [1, 4].map(|parts| Staging::from(Merging::Parts(parts)));
            for staging in counts.into_iter().chain(parts).chain([own_keys_last()]) {
                for errors in [
                    attention_errors(Magi::new(Runtime(ranks)).with_stages(staging), &batch, &mask),
                    attention_errors(Dynamic::new(Runtime(ranks)).with_stages(staging), &batch, &mask),
                ] {
                    assert!(errors.iter().all(|&error| error < 2e-6), "{mask:?}, {staging:?} on {ranks}: {errors:?}");
                }
            }
        }
    }
}

#[test]
fn the_number_of_stages_does_not_change_a_bit_if_parts_are_merged() {
    let batch = Packed::new(&[13, 0, 1, 90, 140], &[16, 3, 1, 97, 140]).unwrap();
    let mut differ = 0;
    for mask in masks() {
        for (ranks, parts) in [(2, 2), (3, 7), (5, 4)] {
            let bits = |staging: Staging| {
                let (magi, dynamic) = (Magi::new(Runtime(ranks)), Dynamic::new(Runtime(ranks)));
                let magi = attention(magi.with_stages(staging), &batch, &mask, &shape((4, 2)));
                let dynamic = attention(dynamic.with_stages(staging), &batch, &mask, &shape((4, 2)));
                [magi, dynamic].map(|tensors| tensors.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>())
            };
            let of = |staging: Staging| bits(Staging { merging: Merging::Parts(parts), ..staging });
            let one = of(StageCount::Exactly(1).into());
            let others = [2, 5].map(|count| StageCount::Exactly(count).into());
            for staging in others.into_iter().chain([Staging { count: StageCount::Best, ..own_keys_last() }]) {
                assert!(of(staging) == one, "{mask:?} on {ranks} ranks, {parts} parts: {staging:?}");
            }
            differ += usize::from(bits(StageCount::Exactly(1).into()) != bits(StageCount::Exactly(3).into()));
        }
    }
    assert!(differ > 0, "merging by stage rounds alike in every case: the comparison sees nothing");
}

#[test]
fn ranks_with_other_stages_are_told_before_they_compute() {
    let error = threads::run(2, |comm| {
        let device = Cpu::<f32>::new(1);
        let strategy = Magi::new(Runtime(2)).with_stages(StageCount::Exactly(2 + comm.rank()));
        let handler = CpHandler::<Magi, Thd, _, _>::new(strategy, device.clone(), comm)?;
        let placement = handler.place(Packed::from_lengths(&[64])?)?;
        let plan = handler.plan(&placement, &Mask::Causal)?;
        let shape = AttentionShape { q_heads: 2, kv_heads: 1, qk_dim: 4, v_dim: 4, scale: 0.5 };
        let [q, k, v] =
            [8, 4, 4].map(|width| Shard::new(device.zero_matrix(placement.rows(), width), placement.clone()));
        handler.attend(&plan, &shape, q?, k?, v?).map(drop)
    });
    let message = error.unwrap_err().to_string();
    assert!(message.contains("give every rank the same") && message.contains("stages with their costs"), "{message}");
}

/// Gradients of keys and values travel in half the bytes, as predicted, and one rounding worse.
#[test]
fn gradients_travel_in_the_storage_type_if_asked() {
    fn run<H: Supports<Thd, Flash>>(strategy: H, wire: Wire) -> (Vec<f64>, u64) {
        let shape = AttentionShape { q_heads: 4, kv_heads: 2, qk_dim: 8, v_dim: 12, scale: 0.35 };
        let mut draw = Normal::new(4, 0);
        let values: Vec<Vec<bf16>> = [shape.q_width(), shape.k_width(), shape.v_width(), shape.out_width()]
            .map(|width| (0..96 * width).map(|_| bf16::from_f64(draw.draw())).collect())
            .into();
        let found = threads::run(strategy.degree(), |comm| {
            let (device, comm) = (Cpu::<bf16>::new(1), Counted::new(comm));
            let traffic = comm.traffic();
            let handler =
                CpHandler::<H, Thd, _, _>::new(strategy.clone(), device.clone(), comm)?.with_gradient_wire(wire);
            let batch = Arc::new(Packed::from_lengths(&[40, 56])?);
            let placement = handler.place(batch.clone())?;
            let mut shards = Vec::new();
            for values in &values {
                let full = Full::<Thd, bf16>::from_batch_first(values, values.len() / 96, batch.clone())?;
                shards.push(Arc::new(handler.dispatch(&placement, &full)?));
            }
            let plan = handler.plan(&placement, &Mask::Causal)?;
            let (q, k, v) = (&shards[0], &shards[1], &shards[2]);
            let (_, attended) = handler.attend(&plan, &shape, q, k, v)?;
            let held = device.ledger().mark();
            let [_, dk, _] = attended.backward(&handler, &shards[3])?;
            let (_, peak) = plan.peak_bytes::<Flash, Cpu<bf16>>(&shape)?;
            assert_eq!(device.ledger().peak() - held, peak);
            let gradients = traffic.bytes_in("attention gradients") + traffic.bytes_in("attention head gradients");
            let counted = OPERATIONS.into_iter().map(|operation| traffic.bytes_in(operation)).sum::<u64>();
            let (forward, backward) = plan.bytes_sent::<Cpu<bf16>>(&shape)?;
            assert_eq!(counted, (forward + backward) as u64);
            let dk = handler.combine(&dk)?.to_batch_first();
            Ok((dk.into_iter().map(f64::from).collect::<Vec<f64>>(), gradients))
        });
        let found = found.unwrap();
        (found[0].0.clone(), found.iter().map(|rank| rank.1).sum())
    }
    fn compare<H: Supports<Thd, Flash>>(strategy: H) {
        let (exact, bytes) = run(strategy.clone(), Wire::Accumulated);
        let (rounded, half) = run(strategy.clone(), Wire::Stored);
        assert_eq!(2 * half, bytes, "{strategy:?}");
        let error = oracle::relative_error(&rounded, &exact, 0.0);
        assert!(error > 0.0 && error < 1e-2, "{strategy:?}: {error:.1e}");
    }
    compare(Ring::<_, Zigzag>::new(Runtime(4)));
    compare(AllGather::<_, Striped>::new(Runtime(3)));
    compare(Ulysses::<_, Zigzag>::new(Runtime(4)));
    compare(RingUlysses::<_, _, Zigzag>::new(Runtime(2), Runtime(2)));
    compare(Magi::new(Runtime(3)).with_stages(StageCount::Exactly(2)));
}

#[test]
fn heads_are_exchanged_in_every_way() {
    let batch = Packed::new(&[13, 0, 1, 30, 55], &[16, 3, 1, 37, 55]).unwrap();
    for mask in masks() {
        // As many key/value heads as ranks, fewer, one, and a number that does not go with the ranks.
        for (ranks, heads) in
            [(2, (4, 2)), (4, (4, 2)), (4, (4, 1)), (3, (6, 2)), (5, (10, 2)), (6, (12, 4)), (8, (8, 8))]
        {
            let errors = attention_errors_with(Ulysses::<_, Zigzag>::new(Runtime(ranks)), &batch, &mask, heads);
            assert!(errors.iter().all(|&error| error < 2e-6), "{mask:?} on {ranks} with {heads:?} heads: {errors:?}");
        }
        for (outer, inner, heads) in [
            (2, 2, (4, 2)),
            (3, 2, (4, 2)),
            (2, 4, (4, 2)),
            (4, 2, (6, 3)),
            (2, 3, (6, 2)),
            (1, 4, (8, 2)),
            (5, 1, (3, 1)),
        ] {
            for inner_adjacent in [true, false] {
                let zigzag = RingUlysses::<_, _, Zigzag>::new(Runtime(outer), Runtime(inner))
                    .with_inner_adjacent(inner_adjacent);
                let striped = RingUlysses::<_, _, Striped>::new(Runtime(outer), Runtime(inner))
                    .with_inner_adjacent(inner_adjacent);
                for errors in [
                    attention_errors_with(zigzag, &batch, &mask, heads),
                    attention_errors_with(striped, &batch, &mask, heads),
                ] {
                    assert!(
                        errors.iter().all(|&error| error < 2e-6),
                        "{mask:?} on {outer}x{inner} with {heads:?} heads: {errors:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn errors_do_not_grow_with_the_ring() {
    let batch = Packed::from_lengths(&[400, 112]).unwrap();
    for mask in [Mask::Causal, Mask::Full] {
        let alone = attention_errors(Single, &batch, &mask);
        for (ranks, factor) in [(4, 1.5), (16, 1.5), (64, 2.5)] {
            let ring = attention_errors(Ring::<_, Zigzag>::new(Runtime(ranks)), &batch, &mask);
            for (name, (ring, alone)) in ["out", "dq", "dk", "dv"].iter().zip(ring.iter().zip(&alone)) {
                assert!(*ring <= factor * alone + 1e-7, "{name} on {ranks} ranks: {ring:.2e}, alone {alone:.2e}");
            }
        }
    }
}

#[test]
fn a_plan_that_leaves_something_out_fails_its_rehearsal() {
    let batch = Arc::new(Packed::from_lengths(&[64]).unwrap());
    let placement = Placement::<Zigzag, Thd>::new(batch, 2, 0).unwrap();
    let message = AttentionPlan::check(&NoExchange(2), &placement, &Mask::Causal).unwrap_err().to_string();
    assert!(message.contains("no-exchange") && message.contains("does not meet each of its keys once"), "{message}");
}

#[test]
fn ranks_with_different_plans_are_told_before_they_compute() {
    let error = threads::run(2, |comm| {
        let device = Cpu::<f32>::new(1);
        let lengths = if comm.rank() == 0 { [30, 34] } else { [34, 30] };
        let handler = CpHandler::<Ring, Thd, _, _>::new(Ring::new(Runtime(2)), device.clone(), comm)?;
        let batch = Arc::new(Packed::from_lengths(&lengths)?);
        let placement = handler.place(batch.clone())?;
        let x = handler.dispatch(&placement, &Full::<Thd, f32>::from_batch_first(&[0.5; 64 * 4], 4, batch)?)?;
        let x = Arc::new(x);
        let shape = AttentionShape { q_heads: 1, kv_heads: 1, qk_dim: 4, v_dim: 4, scale: 0.5 };
        let plan = handler.plan(&placement, &Mask::Causal)?;
        handler.attend(&plan, &shape, &x, &x, &x).map(drop)
    });
    let message = error.unwrap_err().to_string();
    assert!(message.contains("is in attention keys") && message.contains("give every rank the same"), "{message}");
}

/// The unfused kernel computes sequence by sequence.
#[test]
fn a_mask_across_sequences_is_refused_where_it_would_be_cut_short() {
    fn attend<K: KernelOn<Cpu<f32>>>(mask: &Mask) -> Result<()>
    where
        Single: Supports<Bshd, K>,
    {
        threads::run(1, |comm| {
            let device = Cpu::<f32>::new(1);
            let handler = CpHandler::<Single, Bshd, _, _>::new(Single, device.clone(), comm)?;
            let batch = Arc::new(Bshd::batch_of(&[4, 4])?);
            let placement = handler.place(batch.clone())?;
            let x = Full::<Bshd, f32>::from_batch_first(&[0.5; 8 * 4], 4, batch)?;
            let x = Arc::new(handler.dispatch(&placement, &x)?);
            let shape = AttentionShape { q_heads: 1, kv_heads: 1, qk_dim: 4, v_dim: 4, scale: 0.5 };
            let plan = handler.plan(&placement, mask)?;
            handler.attend_with::<K>(&plan, &shape, &x, &x, &x).map(drop)
        })
        .map(drop)
    }
    let slices = |q, k| Mask::Slices(vec![Slice { q, k, kind: SliceKind::Full }]);
    let (within, across) = (slices(0..4, 1..3), slices(2..6, 1..3));
    attend::<Unfused>(&within).unwrap();
    attend::<Unfused>(&Mask::Causal).unwrap();
    attend::<Flash>(&across).unwrap();
    let message = attend::<Unfused>(&across).unwrap_err().to_string();
    assert!(message.contains("kernel unfused") && message.contains("use the kernel flash"), "{message}");
}

#[test]
fn without_the_exchange_attention_is_wrong() {
    let batch = Packed::from_lengths(&[64]).unwrap();
    assert!(attention_errors(NoExchange(2), &batch, &Mask::Causal)[0] > 0.1);
}

/// Trains on the recall task; gives the share of held-out answers that are right.
fn recall<H: Supports<Thd, Flash>>(strategy: H, steps: u64) -> f64 {
    const SEQ: usize = 16;
    const VOCAB: usize = 8;
    let sizes = Sizes { vocab_size: VOCAB, hidden_size: 64, intermediate_size: 128, layers: 2, heads: 2, kv_heads: 2 };
    let config = Config::llama(sizes).unwrap();
    let source = Source::Recall(Recall::new(VOCAB, SEQ).unwrap());
    let rights = threads::run(strategy.degree(), |comm| {
        let device = Cpu::<f32>::new(1);
        let handler = CpHandler::<H, Thd, _, _>::new(strategy.clone(), device.clone(), comm)?;
        let weights = init::fresh(&device, &config, &ParameterList::new(&config), 0)?;
        let options = AdamwOptions { weight_decay: 0.0, ..AdamwOptions::default() };
        let mut learner = GptLearner::<H, Thd, Flash, _, _>::new(&config, weights, handler)?.with_options(options);
        for step in 0..steps {
            let batch = source.batch(0, step, 0..16, SEQ);
            learner.accumulate(&batch, batch.counted())?;
            learner.update(5e-3 * ((step + 1) as f64 / 10.0).min(1.0))?;
        }
        right_answers(&learner, &source.held_out(1, SEQ, 64))
    });
    rights.unwrap().iter().sum::<f64>() / (64 * SEQ / 2) as f64
}

fn right_answers<H: Supports<Thd, Flash>>(
    learner: &GptLearner<H, Thd, Flash, Cpu<f32>, threads::ThreadComm>,
    batch: &TokenBatch,
) -> Result<f64> {
    let (model, handler) = (learner.model(), learner.handler());
    let shape = Arc::new(Packed::from_lengths(&batch.lengths)?);
    let inputs = Inputs::<H, Thd, Cpu<f32>>::new(handler, shape, &batch.tokens, &batch.labels)?;
    let logits = model.logits(&model.forward(handler, &inputs.tokens)?);
    let mut right = 0;
    for (row, &label) in inputs.labels.matrix().iter().enumerate().filter(|(_, label)| **label != IGNORED) {
        let best = logits.row(row).iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(id, _)| id as i64);
        right += usize::from(best == Some(label));
    }
    Ok(right as f64)
}

#[test]
fn recall_is_learned_across_ranks_and_only_with_the_exchange() {
    let with = recall(Ring::<_, Zigzag>::new(Runtime(2)), 150);
    let without = recall(NoExchange(2), 150);
    assert!(with > 0.95, "{with} of the answers with the exchange");
    assert!(without < 0.3, "{without} of the answers without it, where chance is 0.125");
}

#[test]
fn recomputing_blocks_changes_no_bit_of_the_gradient() {
    let config = config();
    let batch = Source::Recall(Recall::new(41, 32).unwrap()).batch(0, 0, 0..2, 32);
    let gradients = |recompute: bool| {
        threads::run(3, |comm| {
            let device = Cpu::<f32>::new(1);
            let handler = CpHandler::<Ring, Thd, _, _>::new(Ring::new(Runtime(3)), device.clone(), comm)?;
            let weights = init::fresh(&device, &config, &ParameterList::new(&config), 0)?;
            let mut learner = GptLearner::<Ring, Thd>::new(&config, weights, handler)?.with_recompute(recompute);
            learner.accumulate(&batch, batch.counted())?;
            let bits = learner.gradients().flat().iter().map(|x| x.to_bits());
            Ok((bits.collect::<Vec<u32>>(), device.pool().stats().peak))
        })
        .unwrap()
    };
    for ((kept, kept_peak), (again, again_peak)) in gradients(false).into_iter().zip(gradients(true)) {
        assert_eq!(kept, again);
        assert!(again_peak < kept_peak, "{again_peak} bytes with recomputation, {kept_peak} without");
    }
}

#[test]
fn a_training_step_allocates_nothing_once_shapes_are_known() {
    let source = Source::Recall(Recall::new(32, 64).unwrap());
    let config = config();
    let grown = threads::run(2, |comm| {
        let device = Cpu::<f32>::new(1);
        let handler = CpHandler::<Ring, Thd, _, _>::new(Ring::new(Runtime(2)), device.clone(), comm)?;
        let weights = init::fresh(&device, &config, &ParameterList::new(&config), 0)?;
        let options = AdamwOptions::default();
        let mut learner = GptLearner::<Ring, Thd>::new(&config, weights, handler)?.with_options(options);
        let mut step = |batch: &TokenBatch| -> Result<u64> {
            learner.accumulate(batch, batch.counted())?;
            learner.update(1e-3)?;
            Ok(device.memory().allocations)
        };
        let first = step(&source.batch(0, 0, 0..4, 64))?;
        let same = step(&source.batch(0, 1, 0..4, 64))?;
        let smaller = step(&source.batch(0, 2, 0..3, 48))?;
        Ok((first, same, smaller))
    });
    for (first, same, smaller) in grown.unwrap() {
        assert_eq!((same, smaller), (first, first), "blocks requested after the first step");
    }
}
