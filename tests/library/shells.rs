//! The typed shells do just what the code under them does, which is what program and other tests run: every method
//! of a typed handler, model and learner against its counterpart without types, to the bit.

use std::sync::Arc;

use context_parallel::comm::threads::{self, ThreadComm};
use context_parallel::degree::Runtime;
use context_parallel::error::{Error, PlacementError, Result};
use context_parallel::handler::{CpHandler, HandlerRef, Partial, Replicated, UntypedHandler, WholeBatch};
use context_parallel::kernel::{Flash, KernelOn, Unfused, kernel_object};
use context_parallel::layout::{Batch, Bshd, Layout, LayoutKind, Packed, Sbhd, Thd};
use context_parallel::mask::Mask;
use context_parallel::model::init::{self, Normal};
use context_parallel::model::inputs::{DynInputs, Inputs};
use context_parallel::model::{Config, DynModel, GptModel, ParameterList, Sizes};
use context_parallel::ops::attention::AttentionShape;
use context_parallel::order::{DynPlacement, DynShard, Full, Natural, Placement, Striped, Zigzag, laid_out};
use context_parallel::rope::{Rope, RopeConfig};
use context_parallel::strategy::{AllGather, Dynamic, Magi, Ring, RingUlysses, Single, Supports, Ulysses, object};
use context_parallel::tensor::{Cpu, Matrix};
use context_parallel::train::data::TokenBatch;
use context_parallel::train::learner::{DynLearner, GptLearner};
use context_parallel::train::trainer::Learner;

const SHAPE: AttentionShape = AttentionShape { q_heads: 4, kv_heads: 2, qk_dim: 4, v_dim: 6, scale: 0.5 };

fn config() -> Config {
    let sizes = Sizes { vocab_size: 17, hidden_size: 16, intermediate_size: 20, layers: 2, heads: 4, kv_heads: 2 };
    Config::llama(sizes).unwrap().with_mtp_depth(1)
}

/// Values by name, as one rank has them.
type Found = Vec<(&'static str, Vec<f64>)>;

/// Puts a combination's shells and what is under them through the same, on `ranks` ranks.
fn agrees<H, L, K>(strategy: H, ranks: usize, lengths: &[usize])
where
    H: Supports<L, K>,
    L: Layout,
    K: KernelOn<Cpu<f32>>,
{
    let batch = Arc::new(L::batch_of(lengths).unwrap());
    let typed = threads::run(ranks, |comm| typed::<H, L, K>(strategy.clone(), comm, &batch)).unwrap();
    let kernel = kernel_object::<K, Cpu<f32>>();
    let bare = threads::run(ranks, |comm| {
        let (device, config) = (Cpu::<f32>::default(), config());
        let handler = UntypedHandler::new(object(strategy.clone()), L::KIND, device.clone(), Box::new(comm))?;
        let mut found = handled(handler.by_ref(), batch.clone(), kernel)?;
        let master = init::fresh(&device, &config, &ParameterList::new(&config), 3)?;
        let model = DynModel::from_master(device.clone(), &config, &master, kernel)?;
        found.extend(modelled(handler.by_ref(), batch.clone(), &model)?);
        let learner = DynLearner::new(&config, master, handler, kernel)?;
        found.push(("training", trained(learner, &*batch)?));
        Ok(found)
    })
    .unwrap();
    for (rank, (typed, bare)) in typed.iter().zip(&bare).enumerate() {
        assert_eq!(typed.len(), bare.len());
        for ((name, typed), (other, bare)) in typed.iter().zip(bare) {
            assert_eq!((name, typed.is_empty()), (other, bare.is_empty()));
            let differ = typed.iter().zip(bare).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            assert_eq!((typed.len(), differ), (bare.len(), 0), "{name}, {} on rank {rank} of {ranks}", H::NAME);
        }
    }
}

fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut normal = Normal::new(seed, 0);
    (0..count).map(|_| normal.draw() as f32).collect()
}

fn ids(tokens: usize) -> Vec<i64> {
    (0..tokens as i64).map(|i| (i * i + 3) % 17).collect()
}

fn wide(matrix: &Matrix<f32>) -> Vec<f64> {
    matrix.iter().map(|&x| f64::from(x)).collect()
}

fn rope() -> Rope {
    Rope::new(RopeConfig { head_dim: 4, base: 100.0, ..config().rope }).unwrap()
}

fn token_batch(batch: &dyn Batch) -> TokenBatch {
    let lengths: Vec<usize> = (0..batch.documents()).map(|i| batch.document(i).stored).collect();
    TokenBatch { tokens: ids(batch.tokens()), labels: ids(batch.tokens()), lengths }
}

/// Losses and norms of a step, and the loss after it.
fn trained(mut learner: impl Learner, batch: &dyn Batch) -> Result<Vec<f64>> {
    let batch = token_batch(batch);
    let mut found = learner.accumulate_depths(&batch, &batch.counted_by_depth(1))?;
    found.push(learner.update(1e-2)?);
    found.push(learner.evaluate(&batch)?);
    Ok(found)
}

fn typed<H, L, K>(strategy: H, comm: ThreadComm, batch: &Arc<L::Batch>) -> Result<Found>
where
    H: Supports<L, K>,
    L: Layout,
    K: KernelOn<Cpu<f32>>,
{
    let (device, config, tokens) = (Cpu::<f32>::default(), config(), batch.tokens());
    let handler = CpHandler::<H, L, _, _>::new(strategy.clone(), device.clone(), comm)?;
    let placement = handler.place(batch.clone())?;
    let full = |seed, width| Full::<L, f32>::from_batch_first(&numbers(seed, tokens * width), width, batch.clone());
    let widths = [SHAPE.q_width(), SHAPE.k_width(), SHAPE.v_width(), SHAPE.out_width()];
    let mut found: Found = vec![("rows", placement.full_rows_of(handler.rank()).iter().map(|x| x as f64).collect())];
    let mut shards = Vec::new();
    for (seed, width) in widths.into_iter().enumerate() {
        shards.push(Arc::new(handler.dispatch(&placement, &full(seed as u64, width)?)?));
    }
    found.push(("dispatch", wide(shards[0].matrix())));
    found.push(("combine", wide(handler.combine(&shards[0])?.matrix())));
    let Replicated(gathered) = handler.dispatch_adjoint(&shards[0])?;
    found.push(("dispatch_adjoint", wide(gathered.matrix())));
    let summand = full(9 + handler.rank() as u64, 3)?;
    found.push(("partial", wide(handler.combine_adjoint(&placement, Partial(&summand))?.matrix())));
    found.push(("replicated", wide(handler.combine_adjoint(&placement, Replicated(&summand))?.matrix())));
    found.push(("roll", wide(handler.roll(&shards[1], 2, 0.5)?.matrix())));
    found.push(("roll_adjoint", wide(handler.roll_adjoint(&shards[1], 2)?.matrix())));
    let rotary = handler.get_emb_on_this_cp_rank(&rope(), &placement)?;
    let mut rotated = handler.dispatch(&placement, &full(0, widths[0])?)?;
    handler.apply_rotary_pos_emb(&rotary, &mut rotated, SHAPE.q_heads)?;
    found.push(("rotary", wide(rotated.matrix())));
    handler.apply_rotary_pos_emb_backward(&rotary, &mut rotated, SHAPE.q_heads)?;
    found.push(("rotary_backward", wide(rotated.matrix())));
    let plan = handler.plan(&placement, &Mask::Causal)?;
    let [q, k, v, dout] = &shards[..] else { unreachable!("four operands") };
    let (out, attended) = handler.attend_with::<K>(&plan, &SHAPE, q, k, v)?;
    found.push(("attend", wide(out.matrix())));
    for gradient in attended.backward(&handler, dout)? {
        found.push(("attend backward", wide(gradient.matrix())));
    }
    let whole = WholeBatch {
        labels: Some(Full::from_batch_first(&ids(tokens), 1, batch.clone())?),
        loss_mask: Some(full(4, 1)?),
        attention_mask: Some(Full::from_batch_first(&vec![1u8; tokens * 2], 2, batch.clone())?),
        ..WholeBatch::default()
    };
    let cut = handler.get_batch_on_this_cp_rank(&placement, &whole)?;
    assert!(cut.tokens.is_none() && cut.position_ids.is_none());
    found.push(("labels", cut.labels.unwrap().matrix().iter().map(|&x| x as f64).collect()));
    found.push(("loss_mask", wide(cut.loss_mask.unwrap().matrix())));
    found.push(("attention_mask", cut.attention_mask.unwrap().matrix().iter().map(|&x| f64::from(x)).collect()));

    let master = init::fresh(&device, &config, &ParameterList::new(&config), 3)?;
    let model = GptModel::<H, L, K>::from_master(device.clone(), &config, &master)?;
    let placement = handler.place_for(batch.clone(), &model.mask_weights())?;
    let inputs = Inputs::placed(&handler, &placement, &ids(tokens), &ids(tokens))?;
    let ahead = inputs.ahead(&handler)?;
    found.push(("ahead", ahead.tokens.matrix().iter().map(|&x| x as f64).collect()));
    let mut activations = model.forward(&handler, &inputs.tokens)?;
    found.push(("logits", wide(&model.logits(&activations))));
    found.push(("mtp_logits", wide(&model.mtp_logits(&handler, &activations, &inputs)?[0])));
    let mut gradients = model.zero_gradients();
    let (labels, weights) = (&inputs.labels, &inputs.weights);
    let mut losses = vec![model.loss_sum(&activations, labels, weights)?];
    losses.extend(model.mtp_loss_sums(&handler, &activations, &inputs)?);
    let (loss, dhidden) = model.loss_backward(&activations, labels, weights, 0.1, &mut gradients)?;
    losses.push(loss);
    losses.extend(model.mtp_backward(&handler, &mut activations, &inputs, &[0.01], &mut gradients)?);
    model.backward(&handler, activations, &dhidden, &mut gradients)?;
    found.push(("losses", losses));
    let list = gradients.list().clone();
    found
        .extend(list.ids().map(|id| ("gradient", gradients.view(id).to_vec().iter().map(|&x| f64::from(x)).collect())));
    let learner = GptLearner::<H, L, K, _, _>::new(&config, master, handler)?;
    found.push(("training", trained(learner, &**batch)?));
    Ok(found)
}

/// What [`typed`] does with a handler, without types.
fn handled(
    handler: HandlerRef<'_, Cpu<f32>>,
    batch: Arc<dyn Batch>,
    kernel: &'static dyn context_parallel::kernel::DynKernel<Cpu<f32>>,
) -> Result<Found> {
    let (tokens, layout) = (batch.tokens(), handler.layout());
    let placement = handler.place_for(batch.clone(), &[(Mask::Causal, 1)])?;
    let full = |seed, width| laid_out(&numbers(seed, tokens * width), width, &*batch, layout);
    let widths = [SHAPE.q_width(), SHAPE.k_width(), SHAPE.v_width(), SHAPE.out_width()];
    let mut found: Found = vec![("rows", placement.full_rows_of(handler.rank()).iter().map(|x| x as f64).collect())];
    let mut shards: Vec<DynShard<f32>> = Vec::new();
    for (seed, width) in widths.into_iter().enumerate() {
        shards.push(handler.dispatch(&placement, &full(seed as u64, width)?)?);
    }
    found.push(("dispatch", wide(shards[0].matrix())));
    found.push(("combine", wide(&handler.combine(&shards[0])?)));
    found.push(("dispatch_adjoint", wide(&handler.combine(&shards[0])?)));
    let summand = full(9 + handler.rank() as u64, 3)?;
    found.push(("partial", wide(handler.summed(&placement, &summand)?.matrix())));
    found.push(("replicated", wide(handler.dispatch(&placement, &summand)?.matrix())));
    found.push(("roll", wide(handler.roll(&shards[1], 2, 0.5)?.matrix())));
    found.push(("roll_adjoint", wide(handler.roll_adjoint(&shards[1], 2)?.matrix())));
    let rotary = handler.rotary(&rope(), &placement)?;
    let mut rotated = handler.dispatch(&placement, &full(0, widths[0])?)?;
    rotary.rotate(&mut rotated, SHAPE.q_heads)?;
    found.push(("rotary", wide(rotated.matrix())));
    rotary.rotate_backward(&mut rotated, SHAPE.q_heads)?;
    found.push(("rotary_backward", wide(rotated.matrix())));
    let plan = handler.plan(&placement, &Mask::Causal)?;
    let (qkv, dout) = ([&shards[0], &shards[1], &shards[2]], &shards[3]);
    let (out, core) = handler.core_attn(kernel, &plan, &SHAPE, qkv)?;
    found.push(("attend", wide(out.matrix())));
    for gradient in handler.core_attn_backward(&plan, qkv, &core, dout)? {
        found.push(("attend backward", wide(gradient.matrix())));
    }
    let labels = handler.dispatch(&placement, &laid_out(&ids(tokens), 1, &*batch, layout)?)?;
    found.push(("labels", labels.matrix().iter().map(|&x| x as f64).collect()));
    found.push(("loss_mask", wide(handler.dispatch(&placement, &full(4, 1)?)?.matrix())));
    let mask = handler.dispatch(&placement, &laid_out(&vec![1u8; tokens * 2], 2, &*batch, layout)?)?;
    found.push(("attention_mask", mask.matrix().iter().map(|&x| f64::from(x)).collect()));
    Ok(found)
}

/// What [`typed`] does with a model, without types.
fn modelled(handler: HandlerRef<'_, Cpu<f32>>, batch: Arc<dyn Batch>, model: &DynModel<Cpu<f32>>) -> Result<Found> {
    let ids = ids(batch.tokens());
    let placement = handler.place_for(batch, &model.mask_weights())?;
    let inputs = DynInputs::placed(handler, &placement, &ids, &ids)?;
    let ahead = inputs.by_ref().ahead(handler)?;
    let mut found: Found = vec![("ahead", ahead.tokens.matrix().iter().map(|&x| x as f64).collect())];
    let mut activations = model.forward(handler, &inputs.tokens)?;
    found.push(("logits", wide(&model.logits(&activations))));
    found.push(("mtp_logits", wide(&model.mtp_logits(handler, &activations, inputs.by_ref())?[0])));
    let mut gradients = model.zero_gradients();
    let (labels, weights) = (&inputs.labels, &inputs.weights);
    let mut losses = vec![model.loss_sum(&activations, labels, weights)?];
    losses.extend(model.mtp_loss_sums(handler, &activations, inputs.by_ref())?);
    let (loss, dhidden) = model.loss_backward(&activations, labels, weights, 0.1, &mut gradients)?;
    losses.push(loss);
    losses.extend(model.mtp_backward(handler, &mut activations, inputs.by_ref(), &[0.01], &mut gradients)?);
    model.backward(handler, activations, &dhidden, &mut gradients)?;
    found.push(("losses", losses));
    let list = gradients.list().clone();
    found
        .extend(list.ids().map(|id| ("gradient", gradients.view(id).to_vec().iter().map(|&x| f64::from(x)).collect())));
    Ok(found)
}

#[test]
fn shells_do_what_is_under_them() {
    agrees::<Single, Sbhd, Unfused>(Single, 1, &[7, 7]);
    agrees::<Ring, Thd, Flash>(Ring::new(Runtime(3)), 3, &[9, 0, 4, 1]);
    agrees::<Ring<Runtime, Striped>, Bshd, Flash>(Ring::new(Runtime(2)), 2, &[9, 9]);
    agrees::<AllGather, Sbhd, Unfused>(AllGather::new(Runtime(2)), 2, &[5, 5]);
    agrees::<Ulysses, Sbhd, Flash>(Ulysses::new(Runtime(2)), 2, &[6, 6]);
    agrees::<RingUlysses, Thd, Flash>(RingUlysses::new(Runtime(2), Runtime(2)), 4, &[11, 3]);
    agrees::<Magi, Thd, Flash>(Magi::new(Runtime(3)), 3, &[12, 5]);
    agrees::<Dynamic, Thd, Flash>(Dynamic::new(Runtime(2)), 2, &[3, 8]);
}

#[test]
fn a_placement_takes_only_its_own_types() {
    let batch = Arc::new(Packed::from_lengths(&[5, 3]).unwrap());
    let placement = Placement::<Zigzag, Thd>::new(batch, 2, 0).unwrap();
    let data = placement.data();
    assert!(Placement::<Zigzag, Thd>::typed(data.clone()).is_ok());
    let refused = |error: Error| assert!(matches!(error, Error::Placement(PlacementError::Types { .. })), "{error}");
    refused(Placement::<Striped, Thd>::typed(data.clone()).unwrap_err());
    refused(Placement::<Natural, Thd>::typed(data.clone()).unwrap_err());
    refused(Placement::<Zigzag, Bshd>::typed(data.clone()).unwrap_err());
    // Dense batches of both layouts are one type; the layout still tells them apart.
    let dense = LayoutKind::Bshd.batch_of(&[4, 4]).unwrap();
    let deal = object(Ring::<_, Zigzag>::new(Runtime(2))).deal(&*dense, &[]).unwrap();
    let data = DynPlacement::new(dense, LayoutKind::Bshd, context_parallel::degree::Grid::line(2), 0, deal).unwrap();
    assert!(Placement::<Zigzag, Bshd>::typed(data.clone()).is_ok());
    let error = Placement::<Zigzag, Sbhd>::typed(data).unwrap_err();
    assert!(error.to_string().contains("zigzag of layout bshd, and not zigzag of layout sbhd"), "{error}");
}
