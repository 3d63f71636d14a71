//! Multi-token prediction: against an account of its own, finite differences, and a single rank.

use std::sync::Arc;

use context_parallel::comm::{Collectives, threads};
use context_parallel::degree::Runtime;
use context_parallel::error::Result;
use context_parallel::handler::{CpHandler, UntypedHandler};
use context_parallel::kernel::{Flash, Kernel, KernelKind};
use context_parallel::layout::{Batch, Layout, Packed, Thd};
use context_parallel::model::init::{self, Normal};
use context_parallel::model::inputs::{DynInputs, Inputs};
use context_parallel::model::mtp::{WEIGHT, label_counts, scales};
use context_parallel::model::parameters::ParameterSet;
use context_parallel::model::{Config, DynModel, GptModel, Master, ParameterList, Sizes, weights};
use context_parallel::oracle::{norm, relative_error};
use context_parallel::order::{Striped, Zigzag};
use context_parallel::strategy::select::{self, Choice, Chosen};
use context_parallel::strategy::{AllGather, CpStrategy, Ring, Single, Supports, Ulysses, object};
use context_parallel::tensor::{Cpu, DType, Device, Float};
use context_parallel::train::data::{IGNORED, Recall, Source, TokenBatch};
use context_parallel::train::learner::{AdamwOptions, GptLearner, global_sum};
use context_parallel::train::trainer::Learner;

const VOCAB: usize = 13;

fn config(layers: usize, depth: usize) -> Config {
    let sizes = Sizes { vocab_size: VOCAB, hidden_size: 8, intermediate_size: 12, layers, heads: 2, kv_heads: 1 };
    Config::llama(sizes).unwrap().with_mtp_depth(depth)
}

/// Weights none of which is at its initial value: norms around 1, the rest around 0.
fn weights_of<T: Float>(config: &Config) -> Master<Cpu<T>> {
    let list = ParameterList::new(config);
    ParameterSet::from_host(&Cpu::<T>::default(), &list, |id, spec| {
        let mut normal = Normal::new(5, id.index());
        let middle = if spec.name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        Ok((0..spec.len()).map(|_| T::Acc::from_f64(middle + 0.3 * normal.draw())).collect())
    })
    .unwrap()
}

/// Ids, and labels of which about a third of the first half and most of the second half do not count.
fn data(tokens: usize) -> (Vec<i64>, Vec<i64>) {
    let id = |i: usize| ((i * i * 5 + 3 * i + 1) % VOCAB) as i64;
    let ignored = |i: usize| i % 3 == 1 || (2 * i > tokens && !i.is_multiple_of(5));
    ((0..tokens).map(id).collect(), (0..tokens).map(|i| if ignored(i) { IGNORED } else { id(i + 1) }).collect())
}

/// Mean losses over all ranks, the main one first, and the gradient of the loss that is trained, by parameter.
#[derive(Clone, Debug, PartialEq)]
struct Step {
    losses: Vec<f64>,
    gradients: Vec<Vec<f64>>,
    /// Of each depth on the first rank.
    logits: Vec<Vec<f64>>,
}

impl Step {
    /// The worst relative difference of a loss or of a parameter's gradient.
    fn difference(&self, reference: &Step) -> f64 {
        let whole = norm(&reference.gradients.concat());
        let pairs = self.gradients.iter().zip(&reference.gradients);
        let gradients = pairs.map(|(found, reference)| relative_error(found, reference, 1e-3 * whole));
        gradients.fold(relative_error(&self.losses, &reference.losses, 0.0), f64::max)
    }
}

#[derive(Clone)]
struct Case {
    config: Config,
    tokens: Vec<i64>,
    labels: Vec<i64>,
    recompute: bool,
}

impl Case {
    fn new(config: Config, tokens: usize) -> Self {
        let (tokens, labels) = data(tokens);
        Case { config, tokens, labels, recompute: false }
    }

    fn run<H: Supports<L, K>, L: Layout, K: Kernel, T: Float>(&self, strategy: H, batch: L::Batch) -> Step {
        let kernel = KernelKind::named(K::NAME).unwrap();
        self.chosen::<T>(&Chosen { strategy: object(strategy), layout: L::KIND, kernel }, Arc::new(batch))
    }

    fn chosen<T: Float>(&self, chosen: &Chosen, batch: Arc<dyn Batch>) -> Step {
        let Case { config, tokens, labels, recompute } = self;
        let steps = threads::run(chosen.strategy.degree(), |comm| {
            let device = Cpu::<T>::default();
            let handler = UntypedHandler::new(chosen.strategy.clone(), chosen.layout, device.clone(), Box::new(comm))?;
            let (master, kernel) = (weights_of::<T>(config), chosen.kernel.object());
            let model = DynModel::from_master(device.clone(), config, &master, kernel)?.with_recompute(*recompute);
            let placement = handler.place_for(batch.clone(), &model.mask_weights())?;
            let inputs = DynInputs::placed(handler.by_ref(), &placement, tokens, labels)?;
            let counts = label_counts(&*batch, labels, config.mtp_depth);
            let scales = scales(&counts);
            let mut gradients = model.zero_gradients();
            let mut activations = model.forward(handler.by_ref(), &inputs.tokens)?;
            let logits = model.mtp_logits(handler.by_ref(), &activations, inputs.by_ref())?;
            let forward = model.mtp_loss_sums(handler.by_ref(), &activations, inputs.by_ref())?;
            let (sum, dhidden) =
                model.loss_backward(&activations, &inputs.labels, &inputs.weights, scales[0], &mut gradients)?;
            let (later, all) = (&scales[1..], &mut gradients);
            let sums = model.mtp_backward(handler.by_ref(), &mut activations, inputs.by_ref(), later, all)?;
            assert_eq!(sums, forward);
            model.backward(handler.by_ref(), activations, &dhidden, &mut gradients)?;
            let mut losses = Vec::new();
            for (sum, &count) in std::iter::once(sum).chain(sums).zip(&counts) {
                losses.push(global_sum(&device, handler.comm(), sum)? / count.max(1) as f64);
            }
            handler.comm().all_reduce(gradients.flat_mut())?;
            let wide = |id| gradients.view(id).to_vec().iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
            Ok(Step {
                losses,
                gradients: gradients.list().ids().map(wide).collect(),
                logits: logits.iter().map(|logits| logits.iter().map(|x| x.to_f64()).collect()).collect(),
            })
        });
        steps.unwrap().swap_remove(0)
    }

    fn single(&self, batch: Packed) -> Step {
        self.run::<Single, Thd, Flash, f64>(Single, batch)
    }
}

/// A depth as a model of its own, of one layer, in which each row has an embedding of its own: the projection's
/// result. RMSNorm undoes any factor, so normed features of the depth before are as good as the features.
#[test]
fn depths_are_what_their_definition_says() {
    let lengths = [5, 0, 1, 2, 9];
    let batch = Packed::from_lengths(&lengths).unwrap();
    let total = batch.tokens();
    let mut config = config(2, 3);
    config.rms_norm_eps = 0.0;
    config.windows = vec![None, Some(4)];
    config.family = context_parallel::model::Family::Qwen2;
    config.attention_bias =
        context_parallel::model::config::AttentionBias { query: true, key: true, value: true, output: false };
    let case = Case::new(config.clone(), total);
    let found = case.single(batch.clone());

    let device = Cpu::<f64>::default();
    let master = weights_of::<f64>(&config);
    let host = |name: &str| master.to_host(&device, master.list().find(name).unwrap()).unwrap();
    let ones = |len| vec![1.0; len];
    // Normed features of a model whose final norm is 1.
    let features = |config: &Config, tokens: &[i64], values: &(dyn Fn(&str) -> Vec<f64> + Sync)| {
        threads::run(1, |comm| {
            let handler = CpHandler::<Single, Thd, _, _>::new(Single, device.clone(), comm)?;
            let values = |name: &str| if name == "model.norm.weight" { ones(8) } else { values(name) };
            let list = ParameterList::new(config);
            let master = ParameterSet::from_host(&device, &list, |_, spec| Ok(values(&spec.name)))?;
            let model = GptModel::<Single, Thd, Flash, _>::from_master(device.clone(), config, &master)?;
            let inputs = Inputs::new(&handler, Arc::new(batch.clone()), tokens, tokens)?;
            Ok(model.forward(&handler, &inputs.tokens)?.hidden().to_vec())
        })
        .unwrap()
        .remove(0)
    };
    let mut before = features(&config.clone().with_mtp_depth(0), &case.tokens, &host);
    let (embedding, head) = (host("model.embed_tokens.weight"), host("lm_head.weight"));
    let product = |weight: &[f64], x: &[f64]| -> Vec<f64> {
        weight.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    };
    for depth in 1..=3 {
        let part = |name: &str| host(&format!("model.layers.{}.{name}", 2 + depth - 1));
        let (hidden_norm, embedding_norm) = (part("hnorm.weight"), part("enorm.weight"));
        let mut rows = Vec::new();
        let (mut sum, mut count) = (0.0, 0);
        for index in 0..batch.documents() {
            let document = batch.document(index).valid_range();
            for token in document.clone() {
                let mut x: Vec<f64> = Vec::new();
                match token + depth < document.end {
                    true => {
                        let row = &embedding[case.tokens[token + depth] as usize * 8..][..8];
                        let size = (row.iter().map(|x| x * x).sum::<f64>() / 8.0).sqrt();
                        x.extend(row.iter().zip(&embedding_norm).map(|(x, w)| x / size * w));
                    }
                    false => x.extend([0.0; 8]),
                }
                x.extend((0..8).map(|i| before[token * 8 + i] * hidden_norm[i]));
                rows.extend(product(&part("eh_proj.weight"), &x));
            }
        }
        let mut alone = config.clone().with_mtp_depth(0);
        (alone.vocab_size, alone.layers, alone.windows) = (total, 1, vec![Some(4)]);
        let values = |name: &str| match name.strip_prefix("model.layers.0.") {
            Some(name) => part(name),
            None => {
                if name == "model.embed_tokens.weight" {
                    rows.clone()
                } else {
                    vec![0.0; rows.len()]
                }
            }
        };
        before = features(&alone, &(0..total as i64).collect::<Vec<_>>(), &values);
        let norm = part("shared_head.norm.weight");
        let logits: Vec<f64> = before
            .chunks(8)
            .flat_map(|row| product(&head, &row.iter().zip(&norm).map(|(x, w)| x * w).collect::<Vec<_>>()))
            .collect();
        assert!(relative_error(&found.logits[depth - 1], &logits, 0.0) < 1e-12, "logits of depth {depth}");
        for index in 0..batch.documents() {
            let document = batch.document(index).valid_range();
            for token in document.clone().filter(|token| token + depth < document.end) {
                let (label, row) = (case.labels[token + depth], &logits[token * VOCAB..][..VOCAB]);
                if label != IGNORED {
                    sum += row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[label as usize];
                    count += 1;
                }
            }
        }
        assert!(count > 0 && (found.losses[depth] - sum / count as f64).abs() < 1e-12, "loss of depth {depth}");
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let batch = Packed::from_lengths(&[1, 6, 0, 2, 3]).unwrap();
    for tied in [false, true] {
        let mut config = config(1, 2);
        config.tie_word_embeddings = tied;
        let case = Case::new(config.clone(), batch.tokens());
        let found = case.single(batch.clone());
        let device = Cpu::<f64>::default();
        let mut master = weights_of::<f64>(&config);
        let (list, counts) = (master.list().clone(), label_counts(&batch, &case.labels, 2));
        assert!(counts[2] > 0);
        let handler = threads::run(1, |comm| CpHandler::<Single, Thd, _, _>::new(Single, device.clone(), comm))
            .unwrap()
            .remove(0);
        let inputs = Inputs::new(&handler, Arc::new(batch.clone()), &case.tokens, &case.labels).unwrap();
        let mut model = GptModel::<Single, Thd, Flash, _>::from_master(device.clone(), &config, &master).unwrap();
        let mut loss = |master: &Master<Cpu<f64>>| -> Result<f64> {
            model.update(master);
            let activations = model.forward(&handler, &inputs.tokens)?;
            let main = model.loss_sum(&activations, &inputs.labels, &inputs.weights)? / counts[0] as f64;
            let sums = model.mtp_loss_sums(&handler, &activations, &inputs)?;
            Ok(main + WEIGHT / 2.0 * (sums[0] / counts[1] as f64 + sums[1] / counts[2] as f64))
        };
        for (id, spec) in list.iter() {
            let mut expected = Vec::new();
            for element in 0..spec.len() {
                let (row, col) = (element / master.view(id).cols(), element % master.view(id).cols());
                let (middle, step) = (master.view(id).row(row)[col], 1e-5);
                let mut at = |value: f64| {
                    master.view_mut(id).row_mut(row)[col] = value;
                    loss(&master).unwrap()
                };
                expected.push((at(middle + step) - at(middle - step)) / (2.0 * step));
                at(middle);
            }
            let error = relative_error(&found.gradients[id.index()], &expected, 1e-3);
            assert!(error < 1e-7, "{}, tied {tied}: {error:.1e}", spec.name);
            assert!(norm(&expected) > 1e-6, "{} does not matter", spec.name);
        }
    }
}

/// Whether the model of these tests has too few heads for a strategy that exchanges them.
fn heads_cannot_be_shared_out(strategy: &str, ranks: usize) -> bool {
    strategy == <Ulysses>::NAME && !config(2, 2).heads.is_multiple_of(ranks)
}

fn every_combination<T: Float>(bound: f64) {
    let mut compared = 0;
    for (strategy, layout, kernel) in select::combinations().filter(|(strategy, ..)| *strategy != Single::NAME) {
        let packed: &[usize] = &[0, 1, 2, 3, 0, 23, 4, 7];
        let dense: [&[usize]; 2] = [&[11, 11, 11], &[2]];
        for lengths in if layout == Thd::NAME { [packed, &[2, 1]] } else { dense } {
            let case = Case::new(config(2, 2), lengths.iter().sum());
            let select = |strategy: &str, order: &str, degree| {
                let [strategy, order, layout, kernel] = [strategy, order, layout, kernel].map(str::to_string);
                let choice = Choice { strategy, order, layout, kernel, degree, ..Choice::default() };
                // Ring x Ulysses in groups that the heads go into.
                let chosen = select::chosen(&select::fit_heads(choice, config(2, 2).heads).unwrap()).unwrap();
                case.chosen::<T>(&chosen, chosen.layout.batch_of(lengths).unwrap())
            };
            let single = select(Single::NAME, "natural", 1);
            for order in select::orders(strategy) {
                for ranks in [2, 3] {
                    if heads_cannot_be_shared_out(strategy, ranks) {
                        continue;
                    }
                    let difference = select(strategy, order, ranks).difference(&single);
                    assert!(
                        difference < bound,
                        "{strategy} {order} {layout} {kernel} on {ranks} of {lengths:?}: {difference:.1e}"
                    );
                    compared += 1;
                }
            }
        }
    }
    assert!(compared >= 2 * 2 * 3 * 4);
}

#[test]
fn every_combination_gives_what_a_single_rank_gives() {
    every_combination::<f64>(1e-11);
    every_combination::<f32>(1e-5);
}

#[test]
fn padding_counts_nothing_and_reaches_nothing() {
    let (valid, stored) = ([5, 0, 1, 14], [8, 3, 1, 17]);
    let batch = Packed::new(&valid, &stored).unwrap();
    let mut case = Case::new(config(2, 2), batch.tokens());
    for index in 0..4 {
        let document = batch.document(index);
        case.labels[document.valid_range().end..document.stored_range().end].fill(IGNORED);
    }
    let single = case.single(batch.clone());
    let mut bare = case.clone();
    let real: Vec<usize> = (0..4).flat_map(|index| batch.document(index).valid_range()).collect();
    bare.tokens = real.iter().map(|&token| case.tokens[token]).collect();
    bare.labels = real.iter().map(|&token| case.labels[token]).collect();
    assert!(single.difference(&bare.single(Packed::from_lengths(&valid).unwrap())) < 1e-12);
    for ranks in [2, 3] {
        let ring = case.run::<Ring<Runtime, Zigzag>, Thd, Flash, f64>(Ring::new(Runtime(ranks)), batch.clone());
        let striped = case.run::<Ring<Runtime, Striped>, Thd, Flash, f64>(Ring::new(Runtime(ranks)), batch.clone());
        let gather = case.run::<AllGather, Thd, Flash, f64>(AllGather::new(Runtime(ranks)), batch.clone());
        for found in [ring, striped, gather] {
            assert!(found.difference(&single) < 1e-11);
        }
    }
}

#[test]
fn documents_do_not_reach_each_other() {
    let lengths = [3, 1, 6, 2, 5];
    let batch = Packed::from_lengths(&lengths).unwrap();
    let case = Case::new(config(2, 2), batch.tokens());
    let run = |case: &Case| case.run::<Single, Thd, Flash, f32>(Single, batch.clone());
    let before = run(&case);
    for changed in 0..batch.documents() {
        let range = batch.document(changed).valid_range();
        let mut other = case.clone();
        other.tokens[range.clone()].iter_mut().for_each(|id| *id = (*id + 1) % VOCAB as i64);
        let after = run(&other);
        for (depth, (before, after)) in before.logits.iter().zip(&after.logits).enumerate() {
            let rows = before.chunks(VOCAB).zip(after.chunks(VOCAB));
            for (token, (before, after)) in rows.enumerate() {
                let same = before.iter().zip(after).all(|(a, b)| a.to_bits() == b.to_bits());
                assert_eq!(same, !range.contains(&token), "depth {depth}, document {changed}, token {token}");
            }
        }
    }
    // Within a document a token reaches the rows from which it is ahead, and no earlier ones.
    let mut other = case.clone();
    let start = batch.document(2).start;
    other.tokens[start + 4] = (other.tokens[start + 4] + 1) % VOCAB as i64;
    let after = run(&other);
    for depth in 1..=2 {
        let differs = |token: &usize| {
            let row = *token * VOCAB..(*token + 1) * VOCAB;
            before.logits[depth - 1][row.clone()] != after.logits[depth - 1][row]
        };
        assert_eq!((start..start + 6).find(differs), Some(start + 4 - depth));
    }
}

#[test]
fn a_depth_without_labels_is_zero() {
    let mut case = Case::new(config(1, 3), 6);
    // Documents of 2: depth 1 has labels, depths 2 and 3 have none.
    let two = Packed::from_lengths(&[2, 2, 2]).unwrap();
    case.labels = vec![1; 6];
    assert_eq!(label_counts(&two, &case.labels, 3), [6, 3, 0, 0]);
    for eps in [1e-5, 0.0] {
        case.config.rms_norm_eps = eps;
        let step = case.single(two.clone());
        assert_eq!(step.losses[2..], [0.0, 0.0]);
        assert!(step.losses[1] > 0.0 && step.gradients.iter().flatten().all(|x| x.is_finite()));
        let list = ParameterList::new(&case.config);
        let zero = |depth: usize| step.gradients[list.mtp[depth].projection.weight.index()].iter().all(|&x| x == 0.0);
        assert_eq!([0, 1, 2].map(zero), [false, true, true]);
    }
    // No label at all, on three ranks of which two hold no token.
    case.labels = vec![IGNORED];
    case.tokens = vec![4];
    let one = Packed::from_lengths(&[1]).unwrap();
    let step = case.run::<Ring, Thd, Flash, f64>(Ring::new(Runtime(3)), one);
    assert_eq!(step.losses, [0.0; 4]);
    assert!(step.gradients.iter().flatten().all(|&x| x == 0.0));
}

#[test]
fn recomputing_changes_no_bit() {
    let batch = Packed::from_lengths(&[9, 4, 1]).unwrap();
    let case = Case::new(config(2, 2), 14);
    let again = Case { recompute: true, ..case.clone() };
    let run = |case: &Case| case.run::<Ring, Thd, Flash, f32>(Ring::new(Runtime(2)), batch.clone());
    assert_eq!(run(&case), run(&again));
}

#[test]
fn training_allocates_nothing_once_shapes_are_known() {
    let source = Source::Recall(Recall::new(VOCAB, 32).unwrap());
    let grown = threads::run(2, |comm| {
        let (device, config) = (Cpu::<f32>::default(), config(2, 2));
        let handler = CpHandler::<Ring, Thd, _, _>::new(Ring::new(Runtime(2)), device.clone(), comm)?;
        let (weights, options) = (weights_of::<f32>(&config), AdamwOptions::default());
        let mut learner = GptLearner::<Ring, Thd>::new(&config, weights, handler)?.with_options(options);
        let mut step = |step: u64| -> Result<u64> {
            let batch = source.batch(0, step, 0..3, 32);
            learner.accumulate_depths(&batch, &batch.counted_by_depth(2))?;
            learner.update(1e-3)?;
            Ok(device.memory().allocations)
        };
        Ok([step(0)?, step(1)?, step(2)?])
    });
    grown.unwrap().into_iter().for_each(|[first, second, third]| assert_eq!((second, third), (first, first)));
}

#[test]
fn micro_batches_add_up_to_one_batch() {
    let config = config(2, 2);
    let (tokens, labels) = data(4 * 7);
    let whole = TokenBatch::uniform(tokens, labels, 4, 7);
    let counts = whole.counted_by_depth(2);
    let parts: Vec<TokenBatch> = whole.chunks(1).collect();
    assert_ne!(parts[0].counted_by_depth(2), parts[3].counted_by_depth(2), "uneven, so that means of means would show");
    let sums: Vec<usize> = (0..3).map(|depth| parts.iter().map(|part| part.counted_by_depth(2)[depth]).sum()).collect();
    assert_eq!(sums, counts);
    let run = |batches: &[TokenBatch], ranks: usize| {
        threads::run(ranks, |comm| {
            let handler = CpHandler::<Ring, Thd, _, _>::new(Ring::new(Runtime(ranks)), Cpu::<f64>::default(), comm)?;
            let weights = weights_of::<f64>(&config);
            let mut learner = GptLearner::<_, _, Flash, _>::new(&config, weights, handler)?;
            let error = learner.accumulate(&batches[0], counts[0]).unwrap_err();
            assert!(error.is_input() && error.to_string().contains("2 tokens beyond the next"), "{error}");
            let mut sums = [0.0; 3];
            for batch in batches {
                let part = learner.accumulate_depths(batch, &counts)?;
                sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
            learner.reduce_gradients()?;
            let gradients = learner.gradients();
            let gradients = gradients.list().ids().map(|id| gradients.view(id).to_vec()).collect();
            Ok(Step { losses: sums.to_vec(), gradients, logits: Vec::new() })
        })
        .unwrap()
        .remove(0)
    };
    let one = run(std::slice::from_ref(&whole), 1);
    for ranks in [1, 2, 3] {
        assert!(run(&parts, ranks).difference(&one) < 1e-11);
    }
}

#[test]
fn files_keep_the_depths() {
    let (device, config) = (Cpu::<f32>::default(), config(2, 2));
    let list = ParameterList::new(&config);
    let plain = config.clone().with_mtp_depth(0);
    let names: Vec<&str> =
        list.iter().map(|(_, spec)| spec.name.as_str()).filter(|name| name.contains("layers.3.")).collect();
    let block = ParameterList::new(&plain).layers.len();
    assert_eq!((block, names.len()), (2, 4 + 9));
    for name in ["hnorm", "enorm", "eh_proj", "self_attn.q_proj", "post_attention_layernorm", "shared_head.norm"] {
        assert!(names.contains(&format!("model.layers.3.{name}.weight").as_str()), "{name}");
    }
    assert_eq!(list[list.mtp[0].projection.weight].shape, [8, 16]);

    // Fresh weights of the rest do not depend on the depth; completed ones are those of a wholly fresh model.
    let fresh = init::fresh(&device, &config, &list, 3).unwrap();
    let bare = init::fresh(&device, &plain, &ParameterList::new(&plain), 3).unwrap();
    let completed = init::completed(&device, &config, &list, 3, &bare).unwrap();
    for id in list.ids() {
        assert_eq!(fresh.view(id).to_vec(), completed.view(id).to_vec(), "{}", list[id].name);
    }
    assert_eq!(fresh.view(list.mtp[1].norm).row(0), [1.0; 8]);

    let folder = tempfile::tempdir().unwrap();
    weights::save(&device, folder.path(), &config, &fresh, DType::F32).unwrap();
    let read = Config::read(folder.path()).unwrap();
    assert_eq!((read.mtp_depth, &read), (2, &config));
    assert!(read.to_json().unwrap().contains("\"num_nextn_predict_layers\": 2"));
    let again = weights::load_master(&device, folder.path(), &list).unwrap();
    assert_eq!(fresh.flat()[..], again.flat()[..]);
    // Without the key in the configuration, the blocks have no use.
    let error = weights::load_master(&device, folder.path(), &ParameterList::new(&plain)).unwrap_err().to_string();
    assert!(error.contains("4 blocks") && error.contains("num_nextn_predict_layers"), "{error}");
    assert_eq!(read.clone().with_mtp_depth(0), plain);
    assert!(!plain.to_json().unwrap().contains("num_nextn_predict_layers"));
}

/// Depths by the names of earlier versions, whose projection had the hidden state first, and with the copies of
/// embedding and output layer that DeepSeek's files hold.
#[test]
fn depths_are_read_by_older_names_and_with_copies() {
    let (device, config) = (Cpu::<f32>::default(), config(2, 2));
    let list = ParameterList::new(&config);
    let fresh = init::fresh(&device, &config, &list, 3).unwrap();
    let folder = tempfile::tempdir().unwrap();
    weights::save(&device, folder.path(), &config, &fresh, DType::F32).unwrap();
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> =
        file.iter().map(|(name, tensor)| (name.into(), tensor.shape().to_vec(), tensor.data().to_vec())).collect();
    let write = |tensors: &[(String, Vec<usize>, Vec<u8>)]| {
        let view = |(name, shape, data): &'_ (String, Vec<usize>, Vec<u8>)| (name.clone(), shape.clone(), data.clone());
        let owned: Vec<_> = tensors.iter().map(view).collect();
        let views = owned.iter().map(|(name, shape, data)| {
            (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
        });
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    };
    let same = || {
        let read = weights::load_master(&device, folder.path(), &list).unwrap();
        read.flat()[..] == fresh.flat()[..]
    };

    let mut older = tensors.clone();
    for (name, _, data) in &mut older {
        for depth in 0..2 {
            *name = name.replace(&format!("model.layers.{}.", 2 + depth), &format!("model.mtp.{depth}."));
        }
        if name.starts_with("model.mtp.") {
            *name = name.replace("hnorm", "hidden_norm").replace("enorm", "embedding_norm").replace("shared_head.", "");
        }
        if name.ends_with("eh_proj.weight") {
            // Rows of 16 elements of 4 bytes.
            data.chunks_mut(64).for_each(|row| row.rotate_left(32));
        }
    }
    write(&older);
    assert!(older.iter().any(|(name, ..)| name == "model.mtp.1.norm.weight") && same());
    let notes = weights::check(folder.path(), &list).unwrap();
    assert!(notes.len() == 1 && notes[0].contains("older names"), "{notes:?}");

    older.iter_mut().for_each(|(name, ..)| *name = name.trim_start_matches("model.").into());
    write(&older);
    assert!(older.iter().any(|(name, ..)| name == "mtp.1.norm.weight") && same());

    let mut copies = tensors;
    let copy = |from: &str, to: &str| {
        let (_, shape, data) = copies.iter().find(|(name, ..)| name == from).unwrap().clone();
        (to.to_string(), shape, data)
    };
    let embedding = copy("model.embed_tokens.weight", "model.layers.3.embed_tokens.weight");
    let mut head = copy("lm_head.weight", "model.layers.3.shared_head.head.weight");
    copies.extend([embedding, head.clone()]);
    write(&copies);
    assert!(same());
    copies.pop();
    head.2[0] ^= 1;
    copies.push(head);
    write(&copies);
    let error = weights::load_master(&device, folder.path(), &list).unwrap_err().to_string();
    assert!(error.contains("model.layers.3.shared_head.head.weight") && error.contains("lm_head.weight"), "{error}");
}
