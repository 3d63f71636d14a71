//! Degrees and head counts that the types say: the same numbers as those of run time, and what a constructor refuses
//! where the compiler does not see both.

use std::sync::Arc;

use context_parallel::comm::threads;
use context_parallel::degree::{Fixed, Grid, Runtime};
use context_parallel::error::{Error, PlacementError, Result, SupportError};
use context_parallel::handler::CpHandler;
use context_parallel::heads::SwapHeads;
use context_parallel::kernel::{Flash, KernelOn, Unfused};
use context_parallel::layout::{Bshd, Layout, Packed, Thd};
use context_parallel::model::inputs::Inputs;
use context_parallel::model::{
    Architecture, Config, FixedHeads, FromConfig, GptModel, HeadsFit, ParameterList, Sizes, init,
};
use context_parallel::order::{Contiguous, Striped, Zigzag};
use context_parallel::strategy::{
    AllGather, CpStrategy, Dynamic, LocalKv, Magi, Ring, RingUlysses, Row, Supports, Ulysses,
};
use context_parallel::tensor::Cpu;
use context_parallel::train::data::{Recall, Source};
use context_parallel::train::learner::{AdamwOptions, GptLearner};
use context_parallel::train::trainer::Learner;

const HEADS: usize = 8;

fn config() -> Config {
    let sizes = Sizes { vocab_size: 41, hidden_size: 64, intermediate_size: 32, layers: 2, heads: HEADS, kv_heads: 4 };
    let mut config = Config::llama(sizes).unwrap();
    config.initializer_range = 0.2;
    config
}

/// One training step without the update, on every rank: bits of the final features and of the gradients.
fn step<H, L, K, A>(strategy: H, lengths: &[usize]) -> Vec<(Vec<u32>, Vec<u32>)>
where
    H: Supports<L, K>,
    L: Layout,
    K: KernelOn<Cpu<f32>>,
    A: Architecture + HeadsFit<H>,
{
    let total = lengths.iter().sum::<usize>() as i64;
    let tokens: Vec<i64> = (0..total).map(|i| (i * i + 5 * i) % 41).collect();
    threads::run(strategy.degree(), |comm| {
        let device = Cpu::<f32>::new(1);
        let handler = CpHandler::<H, L, _, _>::new(strategy.clone(), device.clone(), comm)?;
        let model = GptModel::<H, L, K, _, A>::new(device.clone(), &config(), 3)?;
        let inputs = Inputs::new(&handler, Arc::new(L::batch_of(lengths)?), &tokens, &tokens)?;
        let activations = model.forward(&handler, &inputs.tokens)?;
        let features = activations.hidden().iter().map(|x| x.to_bits()).collect();
        let mut gradients = model.zero_gradients();
        let (_, dhidden) =
            model.loss_backward(&activations, &inputs.labels, &inputs.weights, 1.0 / total as f64, &mut gradients)?;
        model.backward(&handler, activations, &dhidden, &mut gradients)?;
        Ok((features, gradients.flat().iter().map(|x| x.to_bits()).collect()))
    })
    .unwrap()
}

/// Fixed degree and fixed heads against both of run time.
fn same<F, R, L: Layout, K: KernelOn<Cpu<f32>>>(fixed: F, of_run_time: R, lengths: &[usize])
where
    F: Supports<L, K>,
    R: Supports<L, K>,
    FixedHeads<HEADS, 4>: HeadsFit<F>,
{
    let expected = step::<R, L, K, FromConfig>(of_run_time.clone(), lengths);
    let found = step::<F, L, K, FixedHeads<HEADS, 4>>(fixed.clone(), lengths);
    assert!(found == expected, "{fixed:?} differs from {of_run_time:?}");
    let moved = |(features, gradients): &(Vec<u32>, Vec<u32>)| {
        features.iter().chain(gradients).any(|&bits| f32::from_bits(bits) != 0.0)
    };
    assert!(found.iter().all(moved), "{fixed:?} computes nothing");
}

#[test]
fn a_ring_of_fixed_degree() {
    same::<_, _, Thd, Flash>(Ring::<Fixed<4>>::default(), Ring::<_, Zigzag>::new(Runtime(4)), &[37, 0, 26]);
    same::<_, _, Bshd, Flash>(Ring::<Fixed<3>, Striped>::default(), Ring::<_, Striped>::new(Runtime(3)), &[20, 20]);
}

#[test]
fn all_gather_of_fixed_degree() {
    same::<_, _, Thd, Flash>(AllGather::<Fixed<3>>::default(), AllGather::<_, Zigzag>::new(Runtime(3)), &[37, 0, 26]);
    let of_run_time = AllGather::<_, Contiguous>::new(Runtime(4));
    same::<_, _, Bshd, Unfused>(AllGather::<Fixed<4>, Contiguous>::default(), of_run_time, &[20, 20]);
}

#[test]
fn ulysses_of_fixed_degree() {
    same::<_, _, Thd, Flash>(Ulysses::<Fixed<4>>::default(), Ulysses::<_, Zigzag>::new(Runtime(4)), &[37, 0, 26]);
    same::<_, _, Bshd, Unfused>(Ulysses::<Fixed<8>>::default(), Ulysses::<_, Zigzag>::new(Runtime(8)), &[20, 20]);
}

#[test]
fn ring_ulysses_of_fixed_degrees() {
    let of_run_time = RingUlysses::<_, _, Zigzag>::new(Runtime(3), Runtime(2));
    let fixed = RingUlysses::<Fixed<3>, Fixed<2>>::default();
    same::<_, _, Thd, Flash>(fixed, of_run_time, &[37, 0, 26]);
    let other_links = (fixed.with_inner_adjacent(false), of_run_time.with_inner_adjacent(false));
    same::<_, _, Bshd, Flash>(other_links.0, other_links.1, &[20, 20]);
    let mixed = RingUlysses::<_, _, Zigzag>::new(Runtime(3), Fixed::<2>);
    same::<_, _, Thd, Flash>(mixed, of_run_time, &[37, 0, 26]);
}

#[test]
fn magi_of_fixed_degree() {
    same::<_, _, Thd, Flash>(Magi::<Fixed<4>>::default(), Magi::new(Runtime(4)), &[37, 0, 26]);
}

#[test]
fn dynamic_of_fixed_degree() {
    same::<_, _, Thd, Flash>(Dynamic::<Fixed<4>>::default(), Dynamic::new(Runtime(4)), &[37, 0, 26]);
}

/// What a handler of this strategy says on `size` ranks.
fn refused<H: CpStrategy>(strategy: H, size: usize) -> Error {
    threads::run(size, |comm| CpHandler::<H, Thd>::new(strategy.clone(), Cpu::new(1), comm).map(drop)).unwrap_err()
}

#[test]
fn a_fixed_degree_is_that_of_the_communicator() {
    let degree = |strategy, degree, size| Error::from(PlacementError::Degree { strategy, degree, size });
    assert_eq!(refused(Ring::<Fixed<4>>::default(), 3), degree("ring", 4, 3));
    assert_eq!(refused(AllGather::<Fixed<2>>::default(), 1), degree("all-gather", 2, 1));
    assert_eq!(refused(Ulysses::<Fixed<2>>::default(), 4), degree("ulysses", 2, 4));
    assert_eq!(refused(RingUlysses::<Fixed<2>, Fixed<2>>::default(), 2), degree("ring-ulysses", 4, 2));
    assert_eq!(refused(Magi::<Fixed<4>>::default(), 2), degree("magi", 4, 2));
    assert_eq!(refused(Dynamic::<Fixed<1>>::default(), 2), degree("dynamic", 1, 2));
    assert_eq!(refused(Ring::<Fixed<0>>::default(), 1), PlacementError::ZeroDegree.into());
}

/// Its type says that two ranks exchange heads, its grid that all three do.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Contradiction;

impl CpStrategy for Contradiction {
    type Order = Zigzag;
    type Heads = SwapHeads<Fixed<2>>;
    type Kv = LocalKv;
    const NAME: &'static str = "contradiction";

    fn degree(&self) -> usize {
        3
    }

    fn grid(&self) -> Grid {
        Grid { outer: 1, inner: 3, inner_adjacent: true }
    }
}

impl Row<Thd, Flash> for Contradiction {}

#[test]
fn type_and_grid_of_a_head_exchange_agree() {
    let message = refused(Contradiction, 3).to_string();
    assert!(message.contains("over 2 ranks by its type and over 3 by its grid"), "{message}");
}

#[test]
fn a_model_of_fixed_degree_refuses_heads_of_its_configuration() {
    fn heads(strategy: &'static str, ranks: usize) -> Error {
        SupportError::Heads { strategy, q_heads: HEADS, ranks }.into()
    }
    fn model<H: Supports<Thd, Flash>>() -> Result<GptModel<H, Thd>> {
        let (device, config) = (Cpu::default(), config());
        let master = init::fresh(&device, &config, &ParameterList::new(&config), 0)?;
        let new = GptModel::<H, Thd>::new(device.clone(), &config, 0);
        let parameters = GptModel::<H, Thd>::from_parameters(device.clone(), &config, master.working(&device));
        let master = GptModel::<H, Thd>::from_master(device, &config, &master);
        let errors = [&new, &parameters, &master].map(|model| model.as_ref().err().cloned());
        assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
        new
    }
    assert_eq!(model::<Ulysses<Fixed<3>>>().err(), Some(heads("ulysses", 3)));
    assert_eq!(model::<Ulysses<Fixed<16>>>().err(), Some(heads("ulysses", 16)));
    assert_eq!(model::<RingUlysses<Fixed<4>, Fixed<3>>>().err(), Some(heads("ring-ulysses", 3)));
    assert!(model::<Ulysses<Fixed<4>>>().is_ok() && model::<RingUlysses<Fixed<3>, Fixed<4>>>().is_ok());
    assert!(model::<Ring<Fixed<3>>>().is_ok() && model::<Ulysses>().is_ok());
    let message = heads("ulysses", 3).to_string();
    assert!(
        message.contains("ulysses cannot run a model with 8 query heads on 3 ranks that exchange heads"),
        "{message}"
    );
    assert!(message.contains("must be a multiple of the degree of the head exchange"), "{message}");
}

/// Losses and weights of two steps, on every rank.
fn trained<A: Architecture + HeadsFit<Ulysses<Fixed<2>>>>(config: &Config) -> Result<Vec<(Vec<u64>, Vec<u32>)>> {
    let batch = Source::Recall(Recall::new(41, 32)?).batch(0, 0, 0..1, 32);
    threads::run(2, |comm| {
        let device = Cpu::new(1);
        let weights = init::fresh(&device, config, &ParameterList::new(config), 0)?;
        let handler = CpHandler::<Ulysses<Fixed<2>>, Thd>::new(Ulysses::default(), device, comm)?;
        let learner = GptLearner::<_, _, Flash, _, _, A>::new(config, weights, handler)?;
        let mut learner = learner.with_options(AdamwOptions { clip: 0.5, ..AdamwOptions::default() });
        let mut losses = Vec::new();
        for _ in 0..2 {
            losses.push(learner.accumulate(&batch, batch.counted())?.to_bits());
            learner.update(1e-2)?;
        }
        let weights = learner.master().flat().iter().map(|x| x.to_bits());
        Ok((losses, weights.collect()))
    })
}

#[test]
fn fixed_heads_are_trained_as_those_of_the_configuration() {
    let (fixed, of_run_time) = (trained::<FixedHeads<8, 4>>(&config()), trained::<FromConfig>(&config()));
    let fixed = fixed.unwrap();
    assert!(fixed[0].0[0] != fixed[0].0[1], "the second loss is of other weights");
    assert_eq!(fixed, of_run_time.unwrap());
    let refused = trained::<FixedHeads<4, 4>>(&config()).unwrap_err().to_string();
    assert!(refused.contains("the model type has 4 query heads"), "{refused}");
}

#[test]
fn heads_and_degree_of_run_time_are_refused_where_they_meet() {
    type Strategy = Ulysses<Runtime>;
    let expected = Error::from(SupportError::Heads { strategy: "ulysses", q_heads: HEADS, ranks: 3 });
    let learner = threads::run(3, |comm| {
        let (device, config) = (Cpu::<f32>::new(1), config());
        let handler = CpHandler::<Strategy, Thd, _, _>::new(Ulysses::new(Runtime(3)), device.clone(), comm)?;
        let weights = init::fresh(&device, &config, &ParameterList::new(&config), 0)?;
        Ok(GptLearner::<_, _, Flash, _, _>::new(&config, weights, handler).err())
    });
    assert_eq!(learner.unwrap(), vec![Some(expected.clone()); 3]);
    // Head counts of the type, a degree of run time.
    let forward = threads::run(3, |comm| {
        let device = Cpu::<f32>::new(1);
        let handler = CpHandler::<Strategy, Thd, _, _>::new(Ulysses::new(Runtime(3)), device.clone(), comm)?;
        let model = GptModel::<Strategy, Thd, Flash, _, FixedHeads<HEADS, 4>>::new(device.clone(), &config(), 0)?;
        let batch = Arc::new(Packed::from_lengths(&[9])?);
        let inputs = Inputs::new(&handler, batch, &[1; 9], &[1; 9])?;
        Ok(model.forward(&handler, &inputs.tokens).err())
    });
    assert_eq!(forward.unwrap(), vec![Some(expected); 3]);
}
