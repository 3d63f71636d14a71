//! Overlap of communication and attention: two ranks on a simulated link whose travel time is 0.8 times that of a
//! forward pass, so that it does not fit behind the keys that a rank holds itself. A program of its own, because it
//! compares waits, not instructions.
//!
//! `cargo bench --bench overlap` (needs two idle cores)

use std::sync::Arc;
use std::time::{Duration, Instant};

use context_parallel::comm::decorate::link::{Link, SimulatedLink};
use context_parallel::comm::{Communicator, threads};
use context_parallel::degree::Runtime;
use context_parallel::error::Result;
use context_parallel::handler::CpHandler;
use context_parallel::kernel::Flash;
use context_parallel::layout::{Packed, Thd};
use context_parallel::mask::Mask;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::order::{Full, Zigzag};
use context_parallel::solve::stages::{StageCosts, StageCount, Staging};
use context_parallel::strategy::{AllGather, Magi, Ring, Supports};
use context_parallel::tensor::Cpu;

const TOKENS: usize = 4096;
const SHAPE: AttentionShape = AttentionShape { q_heads: 4, kv_heads: 4, qk_dim: 64, v_dim: 64, scale: 0.125 };
const RUNS: usize = 7;

/// Medians of forward and backward time of the slower rank.
fn measure<H: Supports<Thd, Flash>>(strategy: H, link: &Arc<Link>) -> Result<[Duration; 2]> {
    let values: Vec<f32> = (0..TOKENS * SHAPE.q_width()).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect();
    let times = threads::run(2, |comm| {
        let device = Cpu::<f32>::new(1);
        let handler = CpHandler::<H, Thd, _, _>::new(strategy.clone(), device, SimulatedLink::new(comm, link.clone()))?;
        let batch = Arc::new(Packed::from_lengths(&[TOKENS])?);
        let placement = handler.place_for(batch.clone(), &[(Mask::Full, 1)])?;
        let x = Full::<Thd, f32>::from_batch_first(&values, SHAPE.q_width(), batch)?;
        let x = Arc::new(handler.dispatch(&placement, &x)?);
        let plan = handler.plan(&placement, &Mask::Full)?;
        let mut times = Vec::new();
        for _ in 0..RUNS {
            handler.comm().barrier()?;
            let start = Instant::now();
            let (_, attended) = handler.attend(&plan, &SHAPE, &x, &x, &x)?;
            let forward = start.elapsed();
            handler.comm().barrier()?;
            let start = Instant::now();
            attended.backward(&handler, &x)?;
            times.push([forward, start.elapsed()]);
        }
        Ok(times)
    })?;
    Ok([0, 1].map(|pass| {
        let slower = |run: usize| times.iter().map(|rank| rank[run][pass]).max().unwrap_or_default();
        let mut slower: Vec<Duration> = (0..RUNS).map(slower).collect();
        slower.sort();
        slower[RUNS / 2]
    }))
}

/// Costs in picoseconds as measured here.
fn calibrated([forward, backward]: [Duration; 2], bytes_per_second: f64) -> Staging {
    let cells = (TOKENS * TOKENS / 2) as f64;
    let row = (SHAPE.kv_width() * size_of::<f32>()) as f64 / bytes_per_second * 1e12;
    let costs = |time: Duration, returned: f64| StageCosts {
        cell: (time.as_secs_f64() / cells * 1e12) as u64,
        fetched: row as u64,
        returned: returned as u64,
        message: 50_000_000,
        launch: 50_000_000,
        merged: 500_000,
    };
    Staging { forward: costs(forward, 0.0), backward: costs(backward, row), ..Staging::default() }
}

fn main() -> Result<()> {
    let free = Link::new(Duration::ZERO, 0.0);
    let alone = measure(Magi::new(Runtime(2)), &free)?;
    let remote = (TOKENS / 2 * SHAPE.kv_width() * size_of::<f32>()) as f64;
    let bytes_per_second = remote / (0.8 * alone[0].as_secs_f64());
    let link = Link::new(Duration::from_micros(50), bytes_per_second);
    let staging = calibrated(alone, bytes_per_second);
    let one = Staging { count: StageCount::Exactly(1), ..staging };
    println!(
        "{TOKENS} tokens, full mask, {} heads of {}, 2 ranks of one thread, f32; a message of all keys and values takes {:.0} ms\n",
        SHAPE.q_heads,
        SHAPE.qk_dim,
        link.travel(remote as usize).as_secs_f64() * 1e3
    );
    println!("| | forward ms | of computing alone | backward ms | of computing alone |\n|---|---|---|---|---|");
    let print = |name: &str, times: [Duration; 2]| {
        let ms = times.map(|time| time.as_secs_f64() * 1e3);
        let ratio = [0, 1].map(|i| times[i].as_secs_f64() / alone[i].as_secs_f64());
        println!("| {name} | {:.0} | {:.2} | {:.0} | {:.2} |", ms[0], ratio[0], ms[1], ratio[1]);
    };
    print("computing alone (a link without delay)", alone);
    print("`all-gather`: fetches, then attends", measure(AllGather::<_, Zigzag>::new(Runtime(2)), &link)?);
    print("`ring`: one block ahead", measure(Ring::<_, Zigzag>::new(Runtime(2)), &link)?);
    print("`magi` in one stage", measure(Magi::new(Runtime(2)).with_stages(one), &link)?);
    print("`magi` in the best stages for these costs", measure(Magi::new(Runtime(2)).with_stages(staging), &link)?);
    Ok(())
}
