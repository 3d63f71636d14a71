//! Properties of the handler's data movement, for random layouts, orders, lengths, ranks and element types.

use std::sync::Arc;

use context_parallel::comm::threads;
use context_parallel::degree::Runtime;
use context_parallel::error::Result;
use context_parallel::handler::{CpHandler, Partial, Replicated, Roll};
use context_parallel::kernel::{Flash, kernel_object};
use context_parallel::layout::{Batch, Bshd, Layout, Packed, Sbhd, Thd};
use context_parallel::mask::Mask;
use context_parallel::model::inputs::Inputs;
use context_parallel::model::{Config, GptModel, Sizes};
use context_parallel::ops::attention::AttentionShape;
use context_parallel::oracle;
use context_parallel::order::{Contiguous, Dealt, Full, Striped, TokenOrder, Zigzag};
use context_parallel::strategy::{Magi, Ring};
use context_parallel::tensor::{Cpu, Element, Matrix};
use half::bf16;
use proptest::prelude::*;

/// Lengths of documents with some padding, ranks, features and a seed.
#[derive(Clone, Debug)]
struct Case {
    valid: Vec<usize>,
    padding: Vec<usize>,
    ranks: usize,
    features: usize,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let documents = proptest::collection::vec((0usize..20, 0usize..4), 0..5);
    (documents, 1usize..=9, 1usize..=3, any::<u64>()).prop_map(|(documents, ranks, features, seed)| {
        let (valid, padding) = documents.into_iter().unzip();
        Case { valid, padding, ranks, features, seed }
    })
}

impl Case {
    fn packed(&self) -> Packed {
        let stored: Vec<usize> = self.valid.iter().zip(&self.padding).map(|(valid, padding)| valid + padding).collect();
        Packed::new(&self.valid, &stored).unwrap()
    }

    fn dense<L: Layout>(&self) -> L::Batch {
        let seq = self.valid.first().copied().unwrap_or(0);
        L::batch_of(&vec![seq; self.valid.len()]).unwrap()
    }

    /// Different bits in every row: small integers, and -0.0 among them.
    fn values(&self, count: usize, salt: u64) -> Vec<f32> {
        let mut state = self.seed ^ salt;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            match (state >> 40) % 64 {
                0 => -0.0,
                n => n as f32 - 32.0,
            }
        };
        (0..count).map(|_| next()).collect()
    }
}

fn bits<T: Element>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}

fn dot(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

type Handler<O, L> = CpHandler<Ring<Runtime, O>, L>;

fn on_ranks<O: TokenOrder, L: Layout, R: Send>(
    ranks: usize,
    body: impl Fn(Handler<O, L>) -> Result<R> + Sync,
) -> Vec<R> {
    threads::run(ranks, |comm| body(CpHandler::new(Ring::new(Runtime(ranks)), Cpu::new(1), comm)?)).unwrap()
}

/// combine(dispatch(x)) is x bit for bit, on every rank.
fn round_trip<O: TokenOrder, L: Layout, T: Element>(case: &Case, batch: &L::Batch, convert: impl Fn(f32) -> T + Sync) {
    let batch = Arc::new(batch.clone());
    let values: Vec<T> = case.values(batch.tokens() * case.features, 1).into_iter().map(convert).collect();
    let whole = on_ranks::<O, L, _>(case.ranks, |handler| {
        let placement = handler.place(batch.clone())?;
        let x = Full::<L, T>::from_batch_first(&values, case.features, batch.clone())?;
        assert_eq!(bits(&x.to_batch_first()), bits(&values));
        let shard = handler.dispatch(&placement, &x)?;
        Ok(handler.combine(&shard)?.to_batch_first())
    });
    whole.iter().for_each(|whole| assert_eq!(bits(whole), bits(&values)));
}

/// <dispatch x, y> summed over ranks is <x, dispatch^T y>, and the same for combine with either kind of gradient.
fn adjoints<O: TokenOrder, L: Layout>(case: &Case, batch: &L::Batch) {
    let (batch, n) = (Arc::new(batch.clone()), case.features);
    let x = case.values(batch.tokens() * n, 2);
    let results = on_ranks::<O, L, _>(case.ranks, |handler| {
        let placement = handler.place(batch.clone())?;
        let full = Full::<L, f32>::from_batch_first(&x, n, batch.clone())?;
        let shard = handler.dispatch(&placement, &full)?;
        let local = case.values(placement.rows() * n, 3 + handler.rank() as u64);
        let y =
            context_parallel::order::Shard::new(Matrix::from_slice(&local, placement.rows(), n), placement.clone())?;
        let forward = dot(shard.matrix(), y.matrix());
        let Replicated(gathered) = handler.dispatch_adjoint(&y)?;
        let backward = dot(full.matrix(), gathered.matrix());

        // Combine: every rank holds another summand of the gradient, or the same whole.
        let mine =
            Full::<L, f32>::from_batch_first(&case.values(x.len(), 50 + handler.rank() as u64), n, batch.clone())?;
        let summed = handler.combine_adjoint(&placement, Partial(&mine))?;
        let whole = handler.combine(&y)?;
        let partial = (dot(whole.matrix(), mine.matrix()), dot(y.matrix(), summed.matrix()));
        let same = handler.combine_adjoint(&placement, Replicated(&full))?;
        assert_eq!(bits(same.matrix()), bits(shard.matrix()));
        Ok((forward, backward, partial))
    });
    let forward: f64 = results.iter().map(|result| result.0).sum();
    results.iter().for_each(|(_, backward, _)| assert_eq!(forward, *backward));
    let combined: f64 = results.iter().map(|result| result.2.0).sum();
    let adjoint: f64 = results.iter().map(|result| result.2.1).sum();
    assert_eq!(combined, adjoint);
}

/// Roll is the global roll of the oracle, several tensors at once, and its adjoint is its adjoint.
fn rolls<O: TokenOrder, L: Layout>(case: &Case, batch: &L::Batch, offset: i64) {
    let (batch, n) = (Arc::new(batch.clone()), case.features);
    let (valid, stored): (Vec<usize>, Vec<usize>) =
        (0..batch.documents()).map(|i| batch.document(i)).map(|document| (document.valid, document.stored)).unzip();
    let documents = oracle::documents(&valid, &stored);
    let x = case.values(batch.tokens() * n, 4);
    let ids: Vec<i64> = (0..batch.tokens() as i64).collect();
    let expected = oracle::roll(&x, n, &documents, -offset, 7.5);
    let expected_ids = oracle::roll(&ids, 1, &documents, -offset, -1);
    let products = on_ranks::<O, L, _>(case.ranks, |handler| {
        let placement = handler.place(batch.clone())?;
        let values = handler.dispatch(&placement, &Full::from_batch_first(&x, n, batch.clone())?)?;
        let tokens = handler.dispatch(&placement, &Full::from_batch_first(&ids, 1, batch.clone())?)?;
        let (mut first, mut second) = (Roll::new(&values, 7.5), Roll::new(&tokens, -1));
        handler.roll_all(&placement, offset, &mut [&mut first, &mut second])?;
        let (first, second) = (first.finish()?, second.finish()?);
        assert_eq!(bits(&handler.combine(&first)?.to_batch_first()), bits(&expected));
        assert_eq!(handler.combine(&second)?.to_batch_first(), expected_ids);

        let rolled = handler.roll(&values, offset, 0.0)?;
        let local = case.values(placement.rows() * n, 5 + handler.rank() as u64);
        let y =
            context_parallel::order::Shard::new(Matrix::from_slice(&local, placement.rows(), n), placement.clone())?;
        let back = handler.roll_adjoint(&y, offset)?;
        Ok((dot(rolled.matrix(), y.matrix()), dot(values.matrix(), back.matrix())))
    });
    let forward: f64 = products.iter().map(|product| product.0).sum();
    let backward: f64 = products.iter().map(|product| product.1).sum();
    assert_eq!(forward, backward);
}

fn every<O: TokenOrder>(case: &Case, offset: i64) {
    let (packed, bshd, sbhd) = (case.packed(), case.dense::<Bshd>(), case.dense::<Sbhd>());
    round_trip::<O, Thd, f32>(case, &packed, |x| x);
    round_trip::<O, Bshd, bf16>(case, &bshd, bf16::from_f32);
    round_trip::<O, Sbhd, f64>(case, &sbhd, f64::from);
    round_trip::<O, Thd, i64>(case, &packed, |x| x as i64);
    round_trip::<O, Sbhd, u8>(case, &sbhd, |x| x.abs() as u8);
    adjoints::<O, Thd>(case, &packed);
    adjoints::<O, Sbhd>(case, &sbhd);
    rolls::<O, Thd>(case, &packed, offset);
    rolls::<O, Bshd>(case, &bshd, offset);
    rolls::<O, Sbhd>(case, &sbhd, offset);
}

/// Tables, tensors and plans of something else: one error each, before anything is computed.
#[test]
fn what_does_not_belong_together_is_refused() {
    let message = |result: Result<()>| result.unwrap_err().to_string();
    threads::run(2, |comm| {
        let device = Cpu::<f32>::new(1);
        let handler = CpHandler::<Magi, Thd, _, _>::new(Magi::new(Runtime(2)), device.clone(), &comm)?;
        let batch = Arc::new(Packed::from_lengths(&[6, 4])?);
        for parts in [vec![vec![0..6], vec![6..10], vec![]], vec![vec![0..10]], vec![vec![0..5], vec![5..8]]] {
            let tokens = parts.iter().flatten().map(ExactSizeIterator::len).sum();
            let refused = message(handler.place_with(batch.clone(), Dealt::new(tokens, &parts)?).map(drop));
            assert!(refused.contains("10 tokens on 2 ranks") && refused.contains("from this batch"), "{refused}");
        }
        let ring = CpHandler::<Ring, Thd, _, _>::new(Ring::new(Runtime(2)), device.clone(), &comm)?;
        let other = Packed::from_lengths(&[7, 3])?;
        let refused = message(ring.place_with(batch.clone(), Zigzag::table(&other, 2)).map(drop));
        assert!(refused.contains("zigzag table"), "{refused}");

        let (placement, other) = (ring.place(batch.clone())?, ring.place(Packed::from_lengths(&[7, 4])?)?);
        let values = vec![0.5; 10 * 4];
        let x = Full::<Thd, f32>::from_batch_first(&values, 4, batch.clone())?;
        let x = ring.dispatch(&placement, &x)?;
        let mut roll = Roll::new(&x, 0.0);
        let refused = message(ring.roll_all(&other, 1, &mut [&mut roll]));
        assert!(refused.contains("10 tokens") && refused.contains("11 tokens"), "{refused}");

        let shape = AttentionShape { q_heads: 1, kv_heads: 1, qk_dim: 4, v_dim: 4, scale: 0.5 };
        let (causal, full) = (ring.plan(&placement, &Mask::Causal)?, ring.plan(&placement, &Mask::Full)?);
        let (kernel, qkv) = (kernel_object::<Flash, _>(), [x.data(), x.data(), x.data()]);
        let (out, core) = ring.by_ref().core_attn(kernel, causal.rank_plan(), &shape, qkv)?;
        let refused = message(ring.by_ref().core_attn_backward(full.rank_plan(), qkv, &core, &out).map(drop));
        assert!(refused.contains("pass the plan") && refused.contains("of the forward pass"), "{refused}");
        ring.by_ref().core_attn_backward(causal.rank_plan(), qkv, &core, &out).map(drop)
    })
    .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn zigzag(case in cases(), offset in -6i64..7) {
        every::<Zigzag>(&case, offset);
    }

    #[test]
    fn striped(case in cases(), offset in -6i64..7) {
        every::<Striped>(&case, offset);
        every::<Striped<3>>(&case, offset);
    }

    #[test]
    fn contiguous(case in cases(), offset in -6i64..7) {
        every::<Contiguous>(&case, offset);
    }
}

#[test]
fn a_backward_pass_refuses_what_another_model_left() {
    let refused = threads::run(2, |comm| {
        let device = Cpu::<f32>::new(1);
        let handler = CpHandler::<Ring, Thd, _, _>::new(Ring::new(Runtime(2)), device.clone(), comm)?;
        let model = |layers| {
            let sizes = Sizes { vocab_size: 8, hidden_size: 16, intermediate_size: 16, layers, heads: 2, kv_heads: 1 };
            GptModel::<Ring, Thd>::new(device.clone(), &Config::llama(sizes)?, 0)
        };
        let (two, three) = (model(2)?, model(3)?);
        let batch = Arc::new(Packed::from_lengths(&[5])?);
        let inputs = Inputs::new(&handler, batch, &[1; 5], &[1; 5])?;
        let refused = |own: &GptModel<Ring, Thd>, other: &GptModel<Ring, Thd>| {
            let activations = other.forward(&handler, &inputs.tokens)?;
            let mut gradients = own.zero_gradients();
            let (labels, weights) = (&inputs.labels, &inputs.weights);
            let (_, dhidden) = own.loss_backward(&activations, labels, weights, 0.2, &mut gradients)?;
            own.backward(&handler, activations, &dhidden, &mut gradients)
        };
        assert!(refused(&two, &two).is_ok());
        Ok([refused(&two, &three), refused(&three, &two)].map(|result| result.unwrap_err().to_string()))
    });
    for [more, fewer] in refused.unwrap() {
        assert!(more.contains("activations of 3 layers for a model of 2"), "{more}");
        assert!(fewer.contains("activations of 2 layers for a model of 3"), "{fewer}");
    }
}
