//! One rank's plan: how long it takes, and how it grows with ranks, tokens and documents.
//!
//! `cargo bench --bench plans` measures times; `cargo bench --bench plans -- table` and `.. -- first-tile` print the
//! tables of `results/plans.md`, `.. -- told` what stages that ranks tell one another save.

use std::sync::Arc;
use std::time::{Duration, Instant};

use context_parallel::attention::RankPlan;
use context_parallel::comm::threads;
use context_parallel::handler::UntypedHandler;
use context_parallel::layout::LayoutKind;
use context_parallel::mask::Mask;
use context_parallel::order::DynPlacement;
use context_parallel::plan::{Program, Step, View};
use context_parallel::strategy::select::{self, Choice, Chosen};
use context_parallel::tensor::Cpu;
use criterion::{BenchmarkId, Criterion};

#[path = "../tests/common/packs.rs"]
mod packs;

/// Strategies with an order each.
const STRATEGIES: [(&str, &str); 5] = [
    ("ring", "zigzag"),
    ("ring", "striped"),
    ("all-gather", "zigzag"),
    ("all-gather", "striped"),
    ("ulysses", "zigzag"),
];

const RANKS: [usize; 4] = [64, 256, 1024, 4096];
const TOKENS: [usize; 4] = [1 << 16, 1 << 18, 1 << 20, 1 << 22];

fn choice(strategy: &str, order: &str, ranks: usize) -> Choice {
    Choice {
        strategy: strategy.into(),
        order: order.into(),
        layout: "thd".into(),
        kernel: "flash".into(),
        degree: ranks,
        ..Choice::default()
    }
}

/// The plan of rank 7, from the lengths of the documents on.
fn plan(strategy: &str, order: &str, ranks: usize, lengths: &[usize]) -> RankPlan {
    let chosen = select::chosen(&choice(strategy, order, ranks)).expect("a combination of the table");
    let batch = LayoutKind::Thd.batch_of(lengths).expect("lengths of documents");
    let deal = chosen.strategy.deal(&*batch, &[(Mask::Causal, 1)]).expect("a deal of the batch");
    let placement: Arc<DynPlacement> =
        DynPlacement::new(batch, LayoutKind::Thd, chosen.strategy.grid(), 7, deal).expect("a placement");
    RankPlan::new(&*chosen.strategy, &placement, &Mask::Causal).expect("a plan")
}

fn times(criterion: &mut Criterion) {
    for (strategy, order) in STRATEGIES {
        let mut group = criterion.benchmark_group(format!("plan {strategy} {order}"));
        group.sample_size(10).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(300));
        for ranks in RANKS {
            let id = BenchmarkId::new("1M tokens, ranks", ranks);
            group.bench_function(id, |b| b.iter(|| plan(strategy, order, ranks, &[1 << 20])));
        }
        for tokens in TOKENS {
            let id = BenchmarkId::new("1024 ranks, tokens", tokens);
            group.bench_function(id, |b| b.iter(|| plan(strategy, order, 1024, &[tokens])));
        }
        group.finish();
    }
}

/// What a program lists: runs of rows, and pieces.
fn size(program: &Program) -> (usize, usize) {
    let transfers = program.steps.iter().filter_map(|step| match step {
        Step::Post { sends, receives, .. } => Some(sends.iter().chain(receives)),
        _ => None,
    });
    let runs = transfers.flatten().map(|transfer| transfer.rows.runs().len()).sum();
    (runs, program.tiles().map(|(_, pieces)| pieces.len()).sum())
}

fn line(strategy: &str, order: &str, ranks: usize, lengths: &[usize]) {
    let (mut best, mut sizes) = (Duration::MAX, (0, 0));
    for _ in 0..3 {
        let start = Instant::now();
        let plan = plan(strategy, order, ranks, lengths);
        best = best.min(start.elapsed());
        let (forward, backward) = (size(plan.forward()), size(plan.backward()));
        sizes = (forward.0 + backward.0, forward.1 + backward.1);
    }
    let (tokens, documents) = (lengths.iter().sum::<usize>(), lengths.len());
    println!(
        "| {strategy}, {order} | {ranks} | {tokens} | {documents} | {} | {} | {:.1} |",
        sizes.0,
        sizes.1,
        1e3 * best.as_secs_f64()
    );
}

fn table() {
    println!("| strategy, order | ranks | tokens | documents | runs | pieces | ms |\n|---|---|---|---|---|---|---|");
    for (strategy, order) in STRATEGIES {
        RANKS.iter().for_each(|&ranks| line(strategy, order, ranks, &[1 << 22]));
        TOKENS[..3].iter().for_each(|&tokens| line(strategy, order, 4096, &[tokens]));
    }
    for (strategy, order) in STRATEGIES {
        for ranks in [64, 256] {
            let lengths = packs::log_normal(ranks, 0);
            line(strategy, order, ranks, &lengths);
        }
    }
    for strategy in ["magi", "dynamic"] {
        for ranks in [64, 256] {
            line(strategy, "", ranks, &[1 << 20]);
        }
    }
}

/// Programs of rank 7, forward and backward: where it solves the stages of all ranks that it serves by itself, and
/// where they tell it and it solves its own.
fn told_line(strategy: &str, ranks: usize, lengths: &[usize]) {
    let chosen = select::chosen(&choice(strategy, "", ranks)).expect("a combination of the table");
    let strategy = &*chosen.strategy;
    let batch = LayoutKind::Thd.batch_of(lengths).expect("lengths of documents");
    let deal = strategy.deal(&*batch, &[(Mask::Causal, 1)]).expect("a deal of the batch");
    let placement = DynPlacement::new(batch.clone(), LayoutKind::Thd, strategy.grid(), 7, deal).expect("a placement");
    let view = || View::new(&placement, Mask::Causal.lower(&*batch).expect("a mask of the batch"));
    let timed = |work: &dyn Fn(&View)| {
        let times = (0..3).map(|_| {
            let (view, start) = (view(), Instant::now());
            work(&view);
            start.elapsed()
        });
        1e3 * times.min().unwrap_or_default().as_secs_f64()
    };
    let write = |view: &View| {
        std::hint::black_box((strategy.forward(view), strategy.backward(view)));
    };
    let alone = timed(&write);
    let all = view();
    let heard: Vec<(usize, Vec<i64>)> = strategy
        .hears(&all)
        .into_iter()
        .filter_map(|(peer, _)| {
            let tells = strategy.tells(&all.seen_from(peer)).into_iter();
            tells.filter(|(to, _)| *to == all.rank()).map(|(_, numbers)| (peer, numbers)).next()
        })
        .collect();
    drop(all);
    let told = timed(&|view| {
        std::hint::black_box(strategy.tells(view));
        for (peer, numbers) in &heard {
            strategy.hear(view, *peer, numbers).expect("what the other rank found");
        }
        write(view);
    });
    let (name, tokens) = (strategy.name(), lengths.iter().sum::<usize>());
    println!("| {name} | {ranks} | {tokens} | {} | {} | {alone:.1} | {told:.1} |", lengths.len(), heard.len());
}

fn told() {
    println!(
        "| strategy | ranks | tokens | documents | ranks served | alone, ms | told, ms |\n|---|---|---|---|---|---|---|"
    );
    for ranks in [64, 256, 1024] {
        told_line("magi", ranks, &[1 << 20]);
        told_line("dynamic", ranks, &[1 << 20]);
    }
}

/// Milliseconds from a new batch to where the first tile can be attended, on the rank that takes longest: placing and
/// planning, as in a step of training. The median of several batches.
fn first_tile(strategy: &str, lengths: &[usize]) -> f64 {
    const RANKS: usize = 8;
    const BATCHES: usize = 15;
    let choice = choice(strategy, "", RANKS);
    let times = threads::run(RANKS, |comm| {
        let Chosen { strategy, layout, .. } = select::chosen(&choice)?;
        let handler = UntypedHandler::new(strategy, layout, Cpu::<f32>::new(1), Box::new(comm))?;
        let mut times = Vec::new();
        for batch in 0..BATCHES {
            // Another batch each time: what is kept of the one before does not help.
            let mut lengths = lengths.to_vec();
            lengths[0] -= batch;
            let batch = layout.batch_of(&lengths)?;
            handler.comm().barrier()?;
            let start = Instant::now();
            let placement = handler.place_for(batch, &[(Mask::Causal, 1)])?;
            let plan = handler.plan(&placement, &Mask::Causal)?;
            let elapsed = start.elapsed().as_secs_f64();
            assert!(plan.forward().tiles().next().is_some());
            times.push(elapsed);
            handler.comm().barrier()?;
        }
        Ok(times)
    });
    let times = times.expect("all ranks plan");
    let mut slowest: Vec<f64> =
        (0..BATCHES).map(|batch| times.iter().map(|rank| rank[batch]).fold(0.0, f64::max)).collect();
    slowest.sort_by(f64::total_cmp);
    1e3 * slowest[BATCHES / 2]
}

fn first_tiles() {
    println!("| strategy | 1 document, ms | {} documents, ms |\n|---|---|---|", packs::log_normal(8, 0).len());
    for strategy in ["ring", "all-gather", "ulysses", "magi", "dynamic"] {
        let (one, many) = (first_tile(strategy, &[1 << 16]), first_tile(strategy, &packs::log_normal(8, 0)));
        println!("| {strategy} | {one:.2} | {many:.2} |");
    }
}

fn main() {
    let asked = |what: &str| std::env::args().any(|argument| argument == what);
    if asked("table") {
        table();
    } else if asked("first-tile") {
        first_tiles();
    } else if asked("told") {
        told();
    } else {
        let mut criterion = Criterion::default().configure_from_args();
        times(&mut criterion);
        criterion.final_summary();
    }
}
