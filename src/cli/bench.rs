//! `bench attention`: time and throughput of the attention kernel.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Subcommand;
use context_parallel::error::Result;
use context_parallel::handler::CpHandler;
use context_parallel::layout::{Packed, Thd};
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
    /// Attend to so many tokens before the token itself, and to none after it
    #[arg(long, value_name = "N", conflicts_with = "causal")]
    window: Option<usize>,
    /// Fill each sequence with documents of such a median length, log-normal, instead of one document
    #[arg(long, value_name = "TOKENS")]
    documents: Option<usize>,
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
#[derive(Clone, Debug)]
struct Job {
    dtype: DType,
    batch: usize,
    heads: usize,
    kv_heads: usize,
    seq: usize,
    head_dim: usize,
    mask: Mask,
    /// Tokens of each document.
    lengths: Vec<usize>,
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
    /// Milliseconds and GFLOP/s of each pass on the GPU alone: from the begin of its first kernel to the end of its
    /// last.
    #[serde(skip_serializing_if = "Option::is_none")]
    on_gpu: Option<[(f64, f64); 2]>,
    /// Tokens of each document.
    lengths: Vec<usize>,
    runs: usize,
}

pub fn run(arguments: Arguments, cluster: &Cluster) -> Result<ExitCode> {
    let BenchCommand::Attention(arguments) = arguments.part;
    let job = prepare(&arguments)?;
    let report = job.report(compute(&job, cluster)?);
    if arguments.json {
        output::json(&report);
    } else {
        let Timings { forward_ms, backward_ms, forward_gflops, backward_gflops, on_gpu, lengths, runs } = report;
        let row = |name: &str, ms: f64, gflops: f64| vec![name.to_string(), format!("{ms:.2}"), format!("{gflops:.1}")];
        let mut rows = vec![row("forward", forward_ms, forward_gflops), row("backward", backward_ms, backward_gflops)];
        if let Some([(forward_ms, forward_gflops), (backward_ms, backward_gflops)]) = on_gpu {
            rows.push(row("forward, on the GPU", forward_ms, forward_gflops));
            rows.push(row("backward, on the GPU", backward_ms, backward_gflops));
        }
        output::line(output::table(&["pass", "ms", "GFLOP/s"], 1, rows));
        let documents = output::many(lengths.len(), "document");
        output::line(match job.hardware {
            Hardware::Cpu => format!("medians of {runs} runs on {} threads, {documents}", job.threads),
            #[cfg(feature = "cuda")]
            Hardware::Cuda => format!("medians of {runs} runs, {documents}"),
        });
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
    let (batch, seq) = (args::positive("--batch", arguments.batch)?, args::positive("--seq", arguments.seq)?);
    let mask = match arguments.window {
        Some(window) => Mask::sliding(window.saturating_add(1))?,
        None if arguments.causal => Mask::Causal,
        None => Mask::Full,
    };
    let mut job = Job {
        dtype,
        batch,
        heads,
        kv_heads,
        seq,
        head_dim: args::positive("--head-dim", arguments.head_dim)?,
        mask,
        lengths: Vec::new(),
        threads: args::threads(arguments.threads, 1)?,
        runs: args::positive("--runs", arguments.runs)?,
        hardware: arguments.device.hardware(dtype)?,
    };
    let Job { batch, heads, seq, head_dim, .. } = job;
    let what = format!("--batch {batch} --heads {heads} --seq {seq} --head-dim {head_dim}");
    machine::check(job.bytes(), &what, "use smaller numbers")?;
    // A list that fits, as what it is for does.
    job.lengths = match arguments.documents {
        None => vec![seq; batch],
        Some(median) => vec![documents(seq, args::positive("--documents", median)?); batch].concat(),
    };
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

    /// Medians of each pass.
    fn report(&self, mut times: Times) -> Timings {
        let runs = times.host[0].len();
        let [forward, backward] = times.host.each_mut().map(|seconds| median(seconds));
        // Two products of the forward pass, five of the backward pass, for what is attended.
        let gigaflops = 4.0 * times.cells as f64 * self.heads as f64 * self.head_dim as f64 / 1e9;
        let flops = [gigaflops, 2.5 * gigaflops];
        let [on_forward, on_backward] = times.on_gpu.each_mut().map(|seconds| median(seconds));
        let on_gpu = [(1e3 * on_forward, flops[0] / on_forward), (1e3 * on_backward, flops[1] / on_backward)];
        Timings {
            forward_ms: 1e3 * forward,
            backward_ms: 1e3 * backward,
            forward_gflops: flops[0] / forward,
            backward_gflops: flops[1] / backward,
            on_gpu: (!times.on_gpu[0].is_empty()).then_some(on_gpu),
            lengths: self.lengths.clone(),
            runs,
        }
    }
}

/// What was measured: seconds of the forward and of the backward pass.
#[derive(Clone, Debug, Default)]
struct Times {
    host: [Vec<f64>; 2],
    /// From the begin of the first to the end of the last kernel; empty if there is no GPU.
    on_gpu: [Vec<f64>; 2],
    /// Pairs of a query and a key that it attends, of one head.
    cells: u64,
}

/// Lengths of documents that fill `tokens`: log-normal with this median, the last one cut.
fn documents(tokens: usize, median: usize) -> Vec<usize> {
    /// Of the logarithm; about that of documents of the web.
    const SPREAD: f64 = 1.0;

    let mut normal = Normal::new(0, 1);
    let (mut left, mut lengths) = (tokens, Vec::new());
    while left > 0 {
        let length = (median as f64 * (SPREAD * normal.draw()).exp()).round().max(1.0) as usize;
        lengths.push(length.min(left));
        left -= length.min(left);
    }
    lengths
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
fn compute(job: &Job, cluster: &Cluster) -> Result<Times> {
    with_device!(job.hardware, job.dtype, D => measure::<D>(job, cluster))
}

/// Times the handler's attention on one rank, operands unit normal, `[tokens, heads * head_dim]`.
fn measure<D: RankDevice>(job: &Job, cluster: &Cluster) -> Result<Times> {
    let Job { batch, heads, kv_heads, seq, head_dim, ref mask, ref lengths, threads, runs, .. } = *job;
    let scale = 1.0 / (head_dim as f64).sqrt();
    let shape = AttentionShape { q_heads: heads, kv_heads, qk_dim: head_dim, v_dim: head_dim, scale };
    let _measuring = output::phase(format!(
        "attention of {batch} x {heads} heads x {seq} tokens x {head_dim}, forward and backward, {} times on {}",
        runs + 1,
        output::many(threads, "thread")
    ));
    let times = cluster.on_ranks(1, &|rank| D::open(cluster.seat(rank), threads), &|device, comm| {
        let handler = CpHandler::<Single, Thd, _, _>::new(Single, device.clone(), comm)?;
        let placement = handler.place(Arc::new(Packed::from_lengths(lengths)?))?;
        let tokens = lengths.iter().sum::<usize>();
        let mut normal = Normal::new(0, 0);
        let mut operand = |width: usize| {
            let values: Vec<D::Elem> = (0..tokens * width).map(|_| D::Elem::from_f64(normal.draw())).collect();
            Shard::new(Matrix::new(device.upload(&values), tokens, width), placement.clone()).map(Arc::new)
        };
        let (q, k, v) = (operand(shape.q_width())?, operand(shape.k_width())?, operand(shape.v_width())?);
        let dout = operand(shape.out_width())?;
        let plan = handler.plan(&placement, mask)?;
        let mut times = Times { cells: plan.forward().area(), ..Times::default() };
        for run in 0..=runs {
            finish(&device, q.matrix())?;
            let started = Instant::now();
            let (out, attended) = handler.attend(&plan, &shape, &q, &k, &v)?;
            finish(&device, out.matrix())?;
            let between = Instant::now();
            let [dq, ..] = attended.backward(&handler, &dout)?;
            finish(&device, dq.matrix())?;
            if run > 0 {
                times.host[0].push((between - started).as_secs_f64());
                times.host[1].push(between.elapsed().as_secs_f64());
            }
        }
        for _ in 0..runs {
            let mut attended = None;
            let forward = device.seconds(&mut || {
                attended = Some(handler.attend(&plan, &shape, &q, &k, &v)?.1);
                Ok(())
            })?;
            let backward = device.seconds(&mut || {
                attended.take().map(|attended| attended.backward(&handler, &dout)).transpose().map(drop)
            })?;
            times.on_gpu[0].extend(forward);
            times.on_gpu[1].extend(backward);
            if forward.is_none() {
                break;
            }
        }
        Ok(times)
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

    fn job() -> Job {
        Job {
            dtype: DType::Bf16,
            batch: 2,
            heads: 4,
            kv_heads: 1,
            seq: 10,
            head_dim: 8,
            mask: Mask::Full,
            lengths: vec![10; 2],
            threads: 1,
            runs: 1,
            hardware: Hardware::Cpu,
        }
    }

    #[test]
    fn bytes_of_the_tensors() {
        assert_eq!(job().bytes(), 2 * 10 * 8 * 2 * (5 * 4 + 4));
        let huge = Job { batch: usize::MAX, seq: usize::MAX, ..job() };
        assert_eq!(huge.bytes(), u64::MAX);
    }

    #[test]
    fn throughput_follows_the_formula() {
        let job = Job { heads: 8, head_dim: 50, runs: 3, ..job() };
        let host = [vec![0.4, 0.1, 0.2], vec![0.5, 0.4]];
        let times = Times { host, on_gpu: Default::default(), cells: 2_000_000 };
        let report = job.report(times.clone());
        assert_eq!(report.forward_gflops, 4.0 * 2e6 * 8.0 * 50.0 / 1e9 / 0.2);
        assert!((report.backward_gflops - 2.5 * 3.2 / 0.45).abs() < 1e-9);
        assert_eq!((report.forward_ms, report.backward_ms, report.runs), (200.0, 450.0, 3));
        assert_eq!(report.on_gpu, None);
        let report = job.report(Times { on_gpu: [vec![0.1], vec![0.2]], ..times });
        assert_eq!(report.on_gpu, Some([(100.0, 32.0), (200.0, 40.0)]));
    }

    #[test]
    fn documents_fill_the_sequence_around_their_median() {
        let mut lengths = documents(1 << 20, 100);
        assert_eq!(lengths.iter().sum::<usize>(), 1 << 20);
        lengths.sort_unstable();
        assert!((90..110).contains(&lengths[lengths.len() / 2]));
        assert!(lengths[0] > 0 && lengths[lengths.len() - 1] > 1000);
        assert_eq!(documents(5, 1000).iter().sum::<usize>(), 5);
    }
}
