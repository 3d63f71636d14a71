//! `bench attention`: time and throughput of the attention kernel.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Subcommand;
use context_parallel::error::Result;
use context_parallel::handler::CpHandler;
use context_parallel::layout::{Bshd, Layout};
use context_parallel::mask::Mask;
use context_parallel::model::init::Normal;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::order::Shard;
use context_parallel::strategy::Single;
use context_parallel::tensor::{DType, Device, Float, Matrix, MatrixRef};
use serde::Serialize;

use super::args::{self, Names, Table};
use super::engine::Cluster;
use super::hardware::{Hardware, RankDevice, with_device};
use super::{machine, output};

/// Measure a part of the program
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    part: BenchCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum BenchCommand {
    Attention(AttentionArguments),
}

/// Forward and backward of attention on one rank: milliseconds and GFLOP/s
#[derive(clap::Args, Clone, Debug)]
struct AttentionArguments {
    /// Storage type
    #[arg(long, value_name = "NAME", default_value = "f32", value_parser = Names::new(|| args::of(DTYPES)))]
    dtype: String,
    /// Sequences
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Query heads
    #[arg(long, value_name = "N", default_value_t = 8)]
    heads: usize,
    /// Key and value heads [default: --heads]
    #[arg(long, value_name = "N")]
    kv_heads: Option<usize>,
    /// Tokens of a sequence
    #[arg(long, value_name = "N", default_value_t = 2048)]
    seq: usize,
    /// Features of a head
    #[arg(long, value_name = "N", default_value_t = 64)]
    head_dim: usize,
    /// Attend only to the token itself and what is before it
    #[arg(long)]
    causal: bool,
    /// Threads [default: the machine's cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Timed runs, after one that is not timed
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    #[command(flatten)]
    device: args::DeviceArguments,
    /// Print one JSON object
    #[arg(long, help_heading = args::OUTPUT)]
    json: bool,
}

/// Types that are measured.
const DTYPES: Table<DType> = &[(&["f32"], DType::F32), (&["bf16"], DType::Bf16), (&["f16"], DType::F16)];

/// Everything checked.
#[derive(Clone, Copy, Debug)]
struct Job {
    dtype: DType,
    batch: usize,
    heads: usize,
    kv_heads: usize,
    seq: usize,
    head_dim: usize,
    causal: bool,
    threads: usize,
    runs: usize,
    hardware: Hardware,
}

#[derive(Clone, Debug, Serialize)]
struct Timings {
    forward_ms: f64,
    backward_ms: f64,
    forward_gflops: f64,
    backward_gflops: f64,
    runs: usize,
}

pub fn run(arguments: Arguments, cluster: &Cluster) -> Result<ExitCode> {
    let BenchCommand::Attention(arguments) = arguments.part;
    let job = prepare(&arguments)?;
    let (forward, backward) = compute(&job, cluster)?;
    let report = job.report(forward, backward);
    if arguments.json {
        output::json(&report);
    } else {
        let Timings { forward_ms, backward_ms, forward_gflops, backward_gflops, runs } = report;
        let row = |name: &str, ms: f64, gflops: f64| vec![name.to_string(), format!("{ms:.2}"), format!("{gflops:.1}")];
        let rows = [row("forward", forward_ms, forward_gflops), row("backward", backward_ms, backward_gflops)];
        output::line(output::table(&["pass", "ms", "GFLOP/s"], 1, rows));
        output::line(format!("medians of {runs} runs on {} threads", job.threads));
    }
    Ok(ExitCode::SUCCESS)
}

fn prepare(arguments: &AttentionArguments) -> Result<Job> {
    let dtype = args::pick("dtype", &arguments.dtype, DTYPES, &["f64"])?;
    let heads = args::positive("--heads", arguments.heads)?;
    let kv_heads = args::positive("--kv-heads", arguments.kv_heads.unwrap_or(heads))?;
    if heads % kv_heads != 0 {
        let message = format!("--heads is {heads}, not divisible by --kv-heads {kv_heads}: use a divisor of {heads}");
        return Err(args::numbers(message));
    }
    let job = Job {
        dtype,
        batch: args::positive("--batch", arguments.batch)?,
        heads,
        kv_heads,
        seq: args::positive("--seq", arguments.seq)?,
        head_dim: args::positive("--head-dim", arguments.head_dim)?,
        causal: arguments.causal,
        threads: args::threads(arguments.threads, 1)?,
        runs: args::positive("--runs", arguments.runs)?,
        hardware: arguments.device.hardware(dtype)?,
    };
    let Job { batch, heads, seq, head_dim, .. } = job;
    let what = format!("--batch {batch} --heads {heads} --seq {seq} --head-dim {head_dim}");
    machine::check(job.bytes(), &what, "use smaller numbers")?;
    Ok(job)
}

impl Job {
    /// Bytes of the tensors: queries, the output and the gradients of both, keys, values and their gradients, and the
    /// list of values that one of them is made from.
    fn bytes(&self) -> u64 {
        let [batch, heads, kv_heads, seq, head_dim] =
            [self.batch, self.heads, self.kv_heads, self.seq, self.head_dim].map(|size| size as u128);
        let elem = self.dtype.size() as u128;
        let rows = batch.saturating_mul(seq).saturating_mul(head_dim).saturating_mul(elem);
        u64::try_from(rows.saturating_mul(5 * heads + 4 * kv_heads)).unwrap_or(u64::MAX)
    }

    /// Operations of the forward pass: two products of `2 b h s s d` each, half of that if causal.
    fn forward_flops(&self) -> f64 {
        let all = 4.0 * self.batch as f64 * self.heads as f64 * (self.seq as f64).powi(2) * self.head_dim as f64;
        if self.causal { all / 2.0 } else { all }
    }

    /// Medians of the seconds of each pass; the backward pass counts as 2.5 forward passes (five products, not two).
    fn report(&self, mut forward: Vec<f64>, mut backward: Vec<f64>) -> Timings {
        let runs = forward.len();
        let (forward, backward) = (median(&mut forward), median(&mut backward));
        let gigaflops = self.forward_flops() / 1e9;
        Timings {
            forward_ms: 1e3 * forward,
            backward_ms: 1e3 * backward,
            forward_gflops: gigaflops / forward,
            backward_gflops: 2.5 * gigaflops / backward,
            runs,
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 0 => 0.5 * (values[half - 1] + values[half]),
        _ => values[half],
    }
}

/// Seconds of the forward and of the backward pass, `runs` each, after one that is not timed.
fn compute(job: &Job, cluster: &Cluster) -> Result<(Vec<f64>, Vec<f64>)> {
    with_device!(job.hardware, job.dtype, D => measure::<D>(job, cluster))
}

/// Times the handler's attention on one rank, operands unit normal, `[batch * seq, heads * head_dim]`.
fn measure<D: RankDevice>(job: &Job, cluster: &Cluster) -> Result<(Vec<f64>, Vec<f64>)> {
    let Job { batch, heads, kv_heads, seq, head_dim, .. } = *job;
    let scale = 1.0 / (head_dim as f64).sqrt();
    let shape = AttentionShape { q_heads: heads, kv_heads, qk_dim: head_dim, v_dim: head_dim, scale };
    let mask = if job.causal { Mask::Causal } else { Mask::Full };
    let Job { runs, threads, .. } = *job;
    let _measuring = output::phase(format!(
        "attention of {batch} x {heads} heads x {seq} tokens x {head_dim}, forward and backward, {} times on {}",
        runs + 1,
        output::many(threads, "thread")
    ));
    let times = cluster.on_ranks(1, &|rank| D::open(cluster.seat(rank), job.threads), &|device, comm| {
        let handler = CpHandler::<Single, Bshd, _, _>::new(Single, device.clone(), comm)?;
        let placement = handler.place(Bshd::batch_of(&vec![seq; batch])?)?;
        let mut normal = Normal::new(0, 0);
        let mut operand = |width: usize| {
            let values: Vec<D::Elem> = (0..batch * seq * width).map(|_| D::Elem::from_f64(normal.draw())).collect();
            Shard::new(Matrix::new(device.upload(&values), batch * seq, width), placement.clone()).map(Arc::new)
        };
        let (q, k, v) = (operand(shape.q_width())?, operand(shape.k_width())?, operand(shape.v_width())?);
        let dout = operand(shape.out_width())?;
        let plan = handler.plan(&placement, &mask)?;
        let (mut forward, mut backward) = (Vec::new(), Vec::new());
        for run in 0..=job.runs {
            finish(&device, q.matrix())?;
            let started = Instant::now();
            let (out, attended) = handler.attend(&plan, &shape, &q, &k, &v)?;
            finish(&device, out.matrix())?;
            let between = Instant::now();
            let [dq, ..] = attended.backward(&handler, &dout)?;
            finish(&device, dq.matrix())?;
            if run > 0 {
                forward.push((between - started).as_secs_f64());
                backward.push(between.elapsed().as_secs_f64());
            }
        }
        Ok((forward, backward))
    })?;
    Ok(times.unwrap_or_default())
}

/// Waits until everything has run that was asked of a device: it reads one number.
fn finish<D: Device, T: context_parallel::tensor::Element>(device: &D, of: &Matrix<T, D::Storage>) -> Result<()> {
    device.read(MatrixRef::new(of.buffer(), 0, 1, 1, 1)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_the_tensors() {
        let (dtype, causal) = (DType::Bf16, false);
        let job = Job {
            dtype,
            batch: 2,
            heads: 4,
            kv_heads: 1,
            seq: 10,
            head_dim: 8,
            causal,
            threads: 1,
            runs: 1,
            hardware: Hardware::Cpu,
        };
        assert_eq!(job.bytes(), 2 * 10 * 8 * 2 * (5 * 4 + 4));
        let huge = Job { batch: usize::MAX, seq: usize::MAX, ..job };
        assert_eq!(huge.bytes(), u64::MAX);
    }

    #[test]
    fn throughput_follows_the_formula() {
        let mut job = Job {
            dtype: DType::F32,
            batch: 2,
            heads: 8,
            kv_heads: 2,
            seq: 1000,
            head_dim: 50,
            causal: false,
            threads: 1,
            runs: 3,
            hardware: Hardware::Cpu,
        };
        let report = job.report(vec![0.4, 0.1, 0.2], vec![0.5, 0.4]);
        assert_eq!(report.forward_gflops, 4.0 * 2.0 * 8.0 * 1e6 * 50.0 / 1e9 / 0.2);
        assert!((report.backward_gflops - 2.5 * 3.2 / 0.45).abs() < 1e-9);
        assert_eq!((report.forward_ms, report.backward_ms, report.runs), (200.0, 450.0, 3));
        job.causal = true;
        assert_eq!(job.forward_flops(), 1.6e9);
    }
}
