//! One rank's plan: how long it takes, and how it grows with ranks, tokens and documents.
//!
//! `cargo bench --bench plans` measures times; `cargo bench --bench plans -- table` prints the table of
//! `results/plans.md`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use context_parallel::attention::RankPlan;
use context_parallel::layout::LayoutKind;
use context_parallel::mask::Mask;
use context_parallel::order::DynPlacement;
use context_parallel::plan::{Program, Step};
use context_parallel::strategy::select::{self, Choice};
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

/// A token of 4 million, and as many ranks as are planned for.
const RANKS: [usize; 4] = [64, 256, 1024, 4096];
const TOKENS: [usize; 4] = [1 << 16, 1 << 18, 1 << 20, 1 << 22];

/// The plan of rank 7, from the lengths of the documents on.
fn plan(strategy: &str, order: &str, ranks: usize, lengths: &[usize]) -> RankPlan {
    let choice = Choice {
        strategy: strategy.into(),
        order: order.into(),
        layout: "thd".into(),
        kernel: "flash".into(),
        degree: ranks,
        ..Choice::default()
    };
    let chosen = select::chosen(&choice).expect("a combination of the table");
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

fn main() {
    match std::env::args().any(|argument| argument == "table") {
        true => table(),
        false => {
            let mut criterion = Criterion::default().configure_from_args();
            times(&mut criterion);
            criterion.final_summary();
        }
    }
}
