//! The dispatch solver: how long it plans, and what its placements are worth.
//!
//! `cargo bench --bench solver` measures times; `cargo bench --bench solver -- table` prints the tables of
//! `results/dispatch.md`.

use std::time::Instant;

use context_parallel::mask::Mask;
use context_parallel::solve::dispatch::{Dispatch, DispatchOptions, PlacementReport, Remainder, Start, heap, solve};
use criterion::{BenchmarkId, Criterion};

#[path = "../tests/common/packs.rs"]
mod packs;

use packs::{Pack, ROWS, cases, log_normal};

/// Packs per line of the table.
const PACKS: u64 = 20;

/// An effort of about a second.
const LONG: u64 = 1 << 20;

fn times(criterion: &mut Criterion) {
    for ranks in [32, 64] {
        // Chunks of 512 tokens.
        let chunks = ranks * ROWS / 512;
        for (name, mask) in [("causal", Mask::Causal), ("full", Mask::Full)] {
            let pack = Pack::new(&log_normal(ranks, 0), &mask, ranks);
            let mut group = criterion.benchmark_group(format!("plan {name}"));
            group.bench_function(BenchmarkId::new("heap", chunks), |b| {
                b.iter(|| heap(&pack.problem(), 512, Remainder::Uneven))
            });
            group.bench_function(BenchmarkId::new("solve", chunks), |b| {
                b.iter(|| solve(&pack.problem(), &DispatchOptions::default()))
            });
            group.finish();
        }
    }
}

fn balance(report: &PlacementReport) -> f64 {
    report.area_max as f64 * report.area.len() as f64 / report.area.iter().sum::<u128>() as f64
}

fn rows(report: &PlacementReport) -> f64 {
    report.rows_max as f64 * report.rows.len() as f64 / report.rows.iter().sum::<u64>() as f64
}

/// Sums and maxima over packs.
#[derive(Default)]
struct Column {
    traffic: u64,
    busiest: u64,
    balance: f64,
    rows: f64,
    seconds: f64,
}

impl Column {
    fn add(&mut self, place: impl FnOnce() -> Dispatch) -> PlacementReport {
        let start = Instant::now();
        let report = place().report;
        self.seconds += start.elapsed().as_secs_f64();
        self.traffic += report.traffic();
        self.busiest += report.sent.iter().chain(&report.received).max().copied().unwrap_or(0);
        self.balance = self.balance.max(balance(&report));
        self.rows = self.rows.max(rows(&report));
        report
    }

    fn print(&self, setting: &str, name: &str, heap: &Column) {
        println!(
            "| {setting} | {name} | {} | {:.2} | {:.2} | {:.3} | {:.3} | {:.1} |",
            self.traffic,
            heap.traffic as f64 / self.traffic as f64,
            heap.busiest as f64 / self.busiest as f64,
            self.balance,
            self.rows,
            self.seconds * 1e3 / PACKS as f64,
        );
    }
}

fn random_packs() {
    println!("| mask, ranks | placement | rows received | times fewer | busiest rank | balance | rows | ms |");
    println!("|---|---|---|---|---|---|---|---|");
    for (name, mask) in [("causal", Mask::Causal), ("full", Mask::Full)] {
        for ranks in [8, 16, 32, 64] {
            let [mut dealt, mut contiguous, mut zigzag, mut fill, mut solved, mut long] =
                std::array::from_fn(|_| Column::default());
            let mut bound = 0;
            for seed in 0..PACKS {
                let pack = Pack::new(&log_normal(ranks, seed), &mask, ranks);
                let problem = pack.problem();
                dealt.add(|| heap(&problem, 512, Remainder::Uneven));
                contiguous.add(|| Start::Contiguous.place(&problem));
                zigzag.add(|| Start::Zigzag.place(&problem));
                fill.add(|| Start::TwoEnded.place(&problem));
                solved.add(|| solve(&problem, &DispatchOptions::default()));
                let report =
                    long.add(|| solve(&problem, &DispatchOptions { effort: LONG, ..DispatchOptions::default() }));
                bound += report.received_bound;
            }
            let setting = format!("{name}, {ranks}");
            dealt.print(&setting, "heap, chunks of 512", &dealt);
            contiguous.print(&setting, "contiguous", &dealt);
            zigzag.print(&setting, "zigzag per document", &dealt);
            fill.print(&setting, "two-ended fill", &dealt);
            solved.print(&setting, &format!("solver, {} moves", DispatchOptions::default().effort), &dealt);
            long.print(&setting, &format!("solver, {LONG} moves"), &dealt);
            let times = dealt.traffic as f64 / bound as f64;
            println!("| {setting} | lower bound at the last balance | {bound} | {times:.2} | | | | |");
        }
    }
}

fn named_cases() {
    println!("| case | ranks | heap: balance, rows, received | solver: balance, rows, received | lower bound |");
    println!("|---|---|---|---|---|");
    for case in cases() {
        for ranks in [4, 8] {
            let pack = case.pack(ranks);
            let remainder = if case.padded { Remainder::Padded } else { Remainder::Uneven };
            let dealt = heap(&pack.problem(), case.chunk, remainder);
            let options = DispatchOptions { heap: Some((case.chunk, remainder)), ..DispatchOptions::default() };
            let report = solve(&pack.problem(), &options).report;
            let text =
                |report: &PlacementReport| format!("{:.3}, {:.3}, {}", balance(report), rows(report), report.traffic());
            println!(
                "| {} | {ranks} | {} | {} | {} |",
                case.name,
                text(&dealt.report),
                text(&report),
                report.received_bound
            );
        }
    }
}

fn main() {
    if std::env::args().any(|argument| argument == "table") {
        println!("# Dispatch: traffic, balance and time of placements\n");
        println!("Printed by `cargo bench --bench solver -- table`.\n");
        println!("## Random packs\n");
        println!(
            "{PACKS} packs per line, {ROWS} tokens per rank, document lengths log-normal (median 1024, sigma 1.5, at \
             least 16, the last\none cut), attention within documents. Rows of keys and values received, summed over \
             ranks and packs; how many times fewer\nthan with the heap, in sum and at the rank that receives or sends \
             most; area of the busiest rank and rows of the fullest one\nagainst the average, in the worst pack; wall-clock \
             time to plan on one core, whatever else runs there. Contiguous and zigzag are there to compare: their balance\nis not acceptable, or \
             their traffic. The lower bound says how many times fewer rows any placement of that balance can have at\nmost: \
             where it is near 2.5, so is the end of what effort can reach.\n"
        );
        random_packs();
        println!("\n## Named cases\n");
        println!(
            "The table of `magi.md` section 3.4, chunk and padding of the heap as there; the solver with the heap's \
             placement to beat\n(`DispatchOptions::heap`), at the default effort.\n"
        );
        named_cases();
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    times(&mut criterion);
    criterion.final_summary();
}
