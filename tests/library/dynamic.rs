//! Training in the micro-batches of dynamic context parallelism: the same losses and weights as on a single rank,
//! whatever the ranks and the limit of tokens, and no more traffic than was planned.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use context_parallel::comm::decorate::traffic::Counted;
use context_parallel::comm::{Communicator, threads};
use context_parallel::degree::Runtime;
use context_parallel::error::{Error, Result, ScheduleError};
use context_parallel::handler::CpHandler;
use context_parallel::kernel::Flash;
use context_parallel::layout::{Packed, Thd};
use context_parallel::model::{Config, ParameterList, Sizes, init};
use context_parallel::solve::schedule::{Schedule, Scheduler, schedule};
use context_parallel::strategy::{Dynamic, Single, Supports};
use context_parallel::tensor::{Cpu, Host};
use context_parallel::train::data::{Source, Text, TokenBatch};
use context_parallel::train::documents::Separator;
use context_parallel::train::learner::GptLearner;
use context_parallel::train::learning_rate::LearningRate;
use context_parallel::train::trainer::{Learner, StepRecord, TrainOptions, train};

const SEQ: usize = 48;
/// What is counted as attention.
const OPERATIONS: [&str; 2] = ["attention keys", "attention gradients"];

type On<H, C> = GptLearner<H, Thd, Flash, Cpu<f64>, C>;

fn config(mtp_depth: usize) -> Config {
    let sizes = Sizes { vocab_size: 256, hidden_size: 16, intermediate_size: 24, layers: 2, heads: 2, kv_heads: 1 };
    let mut config = Config::llama(sizes).unwrap();
    config.initializer_range = 0.2;
    config.with_mtp_depth(mtp_depth)
}

/// Documents of 0 to 120 bytes, some with nothing between their separators.
fn text() -> Source {
    let mut content = String::new();
    for index in 0..60usize {
        let length = (index * index * 7 + 3 * index) % 121 * usize::from(index % 5 != 0);
        content.extend((0..length).map(|at| char::from(b'a' + ((at * at + index) % 26) as u8)));
        content.push('|');
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text");
    std::fs::write(&path, content).unwrap();
    Source::Text(Text::read_documents(&path, Separator::new("|").unwrap(), SEQ, 0.2).unwrap())
}

fn learner<H, C>(strategy: H, comm: C, config: &Config) -> Result<On<H, C>>
where
    H: Supports<Thd, Flash>,
    C: Communicator<Host>,
{
    let device = Cpu::<f64>::new(1);
    let handler = CpHandler::<H, Thd, _, _>::new(strategy.clone(), device.clone(), comm)?;
    let weights = init::fresh(&device, config, &ParameterList::new(config), 0)?;
    GptLearner::new(config, weights, handler)
}

/// What a run gives: its records, and the weights at its end.
struct Run {
    records: Vec<StepRecord>,
    weights: Vec<f64>,
}

impl Run {
    fn new<H: Supports<Thd, Flash>, C: Communicator<Host>>(mut learner: On<H, C>) -> Result<Self> {
        let schedule = LearningRate::new(1e-2, 1e-3, 0, 4)?;
        let options = TrainOptions {
            schedule,
            seed: 5,
            first_step: 0,
            batch: 3,
            accumulate: 3,
            seq_len: SEQ,
            held_out: 4,
            validate_every: 2,
        };
        let records = train(&mut learner, &text(), &options, &AtomicBool::new(false), |_| Ok(()))?;
        Ok(Run { records, weights: learner.master().flat().to_vec() })
    }

    fn single(mtp_depth: usize) -> Self {
        threads::run(1, |comm| Run::new(learner(Single, comm, &config(mtp_depth))?)).unwrap().remove(0)
    }

    fn dynamic(ranks: usize, tokens: Option<usize>, mtp_depth: usize) -> Result<Self> {
        let scheduler = Scheduler::new(tokens);
        let runs = threads::run(ranks, |comm| {
            Run::new(learner(Dynamic::new(Runtime(ranks)), comm, &config(mtp_depth))?.with_schedule(&scheduler))
        })?;
        let first = runs.into_iter().reduce(|first, other| {
            assert!(first.weights == other.weights, "every rank makes the same step");
            first
        });
        Ok(first.unwrap())
    }

    fn expect_like(&self, reference: &Run) {
        assert_eq!(self.records.len(), reference.records.len());
        for (found, expected) in self.records.iter().zip(&reference.records) {
            let numbers = |r: &StepRecord| [Some(r.loss), Some(r.grad_norm), r.mtp_loss, r.held_out_loss];
            for (found, expected) in numbers(found).into_iter().zip(numbers(expected)) {
                assert_eq!(found.is_some(), expected.is_some());
                let (found, expected) = (found.unwrap_or(1.0), expected.unwrap_or(1.0));
                assert!((found - expected).abs() < 1e-9 * expected, "{found} is not {expected}");
            }
            assert_eq!(found.tokens, expected.tokens);
        }
        let worst = self.weights.iter().zip(&reference.weights).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-9, "a weight is {worst:.1e} apart");
    }
}

#[test]
fn losses_and_weights_are_those_of_a_single_rank() {
    let single = Run::single(0);
    assert!(single.records.iter().all(|record| record.micro_batches == 3));
    let tokens: Vec<usize> = single.records.iter().map(|record| record.tokens).collect();
    assert!(tokens.iter().any(|&other| other != tokens[0]), "steps of different lengths: {tokens:?}");
    for ranks in [1, 2, 3, 5] {
        let mut counts = Vec::new();
        for tokens in [Some(SEQ.div_ceil(ranks)), Some(37), None, Some(10_000)] {
            let Some(tokens) = Some(tokens).filter(|tokens| tokens.is_none_or(|tokens| tokens * ranks >= SEQ)) else {
                continue;
            };
            let run = Run::dynamic(ranks, tokens, 0).unwrap();
            run.expect_like(&single);
            counts.push(run.records.iter().map(|record| record.micro_batches).sum::<usize>());
        }
        assert!(counts[0] > 4 && counts[0] > counts[counts.len() - 1], "micro-batches on {ranks} ranks: {counts:?}");
    }
}

#[test]
fn further_tokens_are_predicted_within_documents() {
    let single = Run::single(2);
    for (ranks, tokens) in [(1, Some(60)), (3, Some(20)), (5, None)] {
        Run::dynamic(ranks, tokens, 2).unwrap().expect_like(&single);
    }
}

#[test]
fn documents_that_do_not_fit_are_refused_with_numbers() {
    let error = Run::dynamic(2, Some(SEQ / 2 - 1), 0).map(drop).unwrap_err();
    assert!(error.is_input());
    let Error::Schedule(ScheduleError::DocumentTooLong { length: SEQ, ranks: 2, tokens: 23, needed: 24, .. }) = error
    else {
        panic!("{error}")
    };
}

fn batch(lengths: &[usize]) -> TokenBatch {
    let total: usize = lengths.iter().sum();
    let ids = |shift: usize| (0..total).map(|i| ((i + shift) * (i + shift) * 5 % 251) as i64).collect();
    TokenBatch { tokens: ids(0), labels: ids(1), lengths: lengths.to_vec() }
}

/// Counted and predicted attention bytes of one step over all ranks, with its schedule.
fn traffic(lengths: &[usize], ranks: usize, tokens: Option<usize>) -> (u64, u64, Schedule) {
    let (batch, config) = (batch(lengths), config(0));
    let schedule = schedule(lengths, ranks, tokens).unwrap();
    let bytes = threads::run(ranks, |comm| {
        let comm = Counted::new(comm);
        let traffic = comm.traffic();
        let mut learner = learner(Dynamic::new(Runtime(ranks)), comm, &config)?.with_schedule(&Scheduler::new(tokens));
        let mut predicted = 0;
        for micro in &schedule.micro_batches {
            let own: Vec<usize> = micro.documents().map(|document| lengths[document]).collect();
            let shape = Arc::new(Packed::from_lengths(&own)?);
            let table = micro.table(&*shape, ranks)?;
            let placement = learner.handler().place_with(shape, table)?;
            assert!(placement.rows() <= schedule.report.tokens_per_rank);
            for mask in learner.model().masks() {
                let plan = learner.handler().plan(&placement, mask)?;
                let (forward, backward) = plan.bytes_sent::<Cpu<f64>>(learner.model().attention_shape())?;
                predicted += (forward + backward) as u64;
            }
        }
        learner.accumulate(&batch, batch.counted())?;
        assert_eq!(learner.micro_batches(), schedule.micro_batches.len());
        Ok((OPERATIONS.map(|operation| traffic.bytes_in(operation)).iter().sum::<u64>(), predicted))
    });
    let bytes = bytes.unwrap();
    for (rank, (counted, predicted)) in bytes.iter().enumerate() {
        assert_eq!(counted, predicted, "rank {rank} of {ranks}, {lengths:?}");
    }
    (bytes.iter().map(|rank| rank.0).sum(), bytes.iter().map(|rank| rank.1).sum(), schedule)
}

#[test]
fn bytes_are_those_that_were_planned() {
    for (lengths, ranks, tokens) in [
        (&[90, 41, 7, 0, 33, 64, 1, 2][..], 2, Some(50)),
        (&[90, 41, 7, 0, 33, 64, 1, 2], 3, Some(40)),
        (&[90, 41, 7, 0, 33, 64, 1, 2], 5, None),
        (&[300, 10], 4, None),
    ] {
        let (counted, predicted, schedule) = traffic(lengths, ranks, tokens);
        assert!(counted > 0 && counted == predicted, "{counted} {predicted}");
        // Keys and values of one head of 8 features, in 2 layers, once forward and twice backward; a causal mask may
        // need fewer rows than are counted as received.
        let most = schedule.report.rows_received as u64 * 2 * 8 * 8 * 2 * 3;
        assert!(counted <= most, "{counted} bytes, {most} at most");
    }
}

#[test]
fn documents_on_one_rank_send_nothing() {
    // Ranks without any tokens too.
    for (lengths, ranks, tokens) in
        [(&[40, 40, 40][..], 3, Some(40)), (&[9, 30, 0, 31, 8], 2, None), (&[0, 0], 2, None), (&[5, 5], 2, Some(5))]
    {
        let (counted, _, schedule) = traffic(lengths, ranks, tokens);
        assert!(schedule.micro_batches.iter().flat_map(|micro| &micro.groups).all(|group| group.degree == 1));
        assert_eq!((counted, schedule.report.rows_received), (0, 0), "{lengths:?}");
    }
    assert!(traffic(&[40, 3], 2, Some(30)).0 > 0, "a document on two ranks does");
}

#[test]
fn ranks_without_tokens_take_part() {
    // More ranks than tokens: the makespan asks for less than one token per rank.
    for lengths in [&[1][..], &[2, 0], &[1, 1, 3]] {
        let batch = batch(lengths);
        let loss = |found: Result<Vec<f64>>| found.unwrap()[0];
        let alone = threads::run(1, |comm| learner(Single, comm, &config(0))?.accumulate(&batch, batch.counted()));
        let spread = threads::run(5, |comm| {
            let mut learner =
                learner(Dynamic::new(Runtime(5)), comm, &config(0))?.with_schedule(&Scheduler::new(Some(3)));
            learner.accumulate(&batch, batch.counted())
        });
        let (alone, spread) = (loss(alone), loss(spread));
        assert!((alone - spread).abs() < 1e-9 * alone, "{lengths:?}: {spread} is not {alone}");
    }
}
