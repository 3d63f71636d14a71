//! The choices that commands share: strategy, layout, order, kernel, ranks, threads, number format, transport, device.

use clap::Args;
use context_parallel::degree::Grid;
use context_parallel::error::Result;
use context_parallel::layout::{Layout, Thd};
use context_parallel::plan::Wire;
use context_parallel::solve::schedule::check_fits;
use context_parallel::strategy::select::{self, Choice};
use context_parallel::strategy::{CpStrategy, Dynamic, Ring, RingUlysses, Single};
use context_parallel::tensor::DType;
use context_parallel::train::documents::Separator;

mod names;
mod refusals;

use names::{DEVICES, TRANSPORTS};
pub use names::{DTYPES, Names, Table, Transport, known, of, pick};
pub use refusals::{not_available, numbers};

/// Headings of options in help.
pub const MODEL: &str = "Model and data";
pub const PARALLELISM: &str = "Parallelism";
pub const TRAINING: &str = "Training";
pub const OUTPUT: &str = "Output";
const RUNNING: &str = "Machine";
/// Seconds that a rank waits for another.
const DEADLINE: u64 = 600;

/// What is chosen at compile time in a program of one's own, and the number of ranks.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = PARALLELISM)]
pub struct Combination {
    /// How sequences are split; Megatron-LM's p2p, all_gather, a2a and a2a+p2p are known too [default: ring if --cp is
    /// above 1, else single]
    #[arg(long, value_name = "NAME", value_parser = Names::STRATEGIES)]
    pub strategy: Option<String>,
    /// Ranks that share a sequence; AxB for ring-ulysses: A groups of B ranks that exchange heads [default: 1, or 2 for
    /// a --strategy other than single]
    #[arg(long, value_name = "N")]
    pub cp: Option<String>,
    /// How batches lie in memory
    #[arg(long, value_name = "NAME", default_value = "thd", value_parser = Names::LAYOUTS)]
    pub layout: String,
    /// Which rank holds which token; not every strategy has every order [default: the strategy's first]
    #[arg(long, value_name = "NAME", value_parser = Names::ORDERS)]
    pub order: Option<String>,
    /// How attention is computed
    #[arg(long, value_name = "NAME", default_value = "flash", value_parser = Names::KERNELS)]
    pub kernel: String,
    /// Whether ring-ulysses places the ranks that exchange heads next to each other, or those of a ring
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub inner_adjacent: Option<bool>,
    /// Moves that magi's solver tries for each placement; a million take about a second [default: 8192]
    #[arg(long, value_name = "MOVES")]
    pub effort: Option<u64>,
    /// Stages in which magi and dynamic fetch remote keys, while they attend those of the stage before [default: as many
    /// as are estimated to take the least time]
    #[arg(long, value_name = "N")]
    pub stages: Option<usize>,
    /// Storage type of activations and weights
    #[arg(long, value_name = "NAME", default_value = "f32", value_parser = Names::DTYPES)]
    pub dtype: String,
}

/// How a model is run.
#[derive(Args, Clone, Debug, Default)]
pub struct Choices {
    #[command(flatten)]
    pub combination: Combination,
    /// Threads of each rank [default: the machine's cores shared out over the ranks]
    #[arg(long, value_name = "N", help_heading = RUNNING)]
    pub threads: Option<usize>,
    #[command(flatten)]
    pub engine: EngineArguments,
}

/// Where ranks run and how they talk.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = RUNNING)]
pub struct EngineArguments {
    /// How ranks exchange data: between threads of this process, or processes that mpirun started (feature mpi)
    #[arg(long, value_name = "NAME", default_value = "threads", value_parser = Names::TRANSPORTS)]
    pub transport: String,
    /// Seconds that a rank waits for another before it gives up
    #[arg(long, value_name = "SECONDS", default_value_t = DEADLINE)]
    pub deadline: u64,
    /// What computes
    #[arg(long, value_name = "NAME", default_value = "cpu", value_parser = Names::DEVICES)]
    pub device: String,
}

impl Default for EngineArguments {
    fn default() -> Self {
        EngineArguments { transport: "threads".into(), deadline: DEADLINE, device: "cpu".into() }
    }
}

impl EngineArguments {
    /// The transport; refuses what does not exist, and what this version or this build does not have.
    pub fn transport(&self) -> Result<Transport> {
        if cfg!(not(feature = "mpi")) && self.transport == "mpi" {
            let instead = "build with `cargo build --release --features mpi`, or use --transport threads";
            return Err(not_available("--transport mpi", instead));
        }
        pick("transport", &self.transport, TRANSPORTS, &["nccl"])
    }

    /// Seconds that a rank waits for another.
    pub fn deadline(&self) -> Result<u64> {
        match self.deadline {
            0 => Err(numbers("--deadline is 0: use at least 1".to_string())),
            seconds => Ok(seconds),
        }
    }

    /// Refuses devices that do not exist, and those that this version does not have.
    pub fn check(&self) -> Result<()> {
        pick("device", &self.device, DEVICES, &["cuda"])
    }
}

/// Choices that exist and go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A supported combination, by canonical names, and its ranks.
    pub choice: Choice,
    /// Threads per rank; 1 where nothing is run.
    pub threads: usize,
    pub dtype: DType,
    /// Whether the ranks of a group that exchanges heads are neighbours.
    inner_adjacent: bool,
}

/// Most moves of the solver, which take minutes.
const MOST_MOVES: u64 = 1 << 28;

impl Combination {
    /// Checks every choice, and those that depend on each other.
    pub fn settings(&self) -> Result<Settings> {
        let dtype = dtype(&self.dtype)?;
        let asked = self.cp.as_deref().map(degree).transpose()?;
        let strategy = match &self.strategy {
            Some(strategy) => strategy,
            None => match asked {
                Some(RankCount::Grid(..)) => <RingUlysses>::NAME,
                Some(RankCount::Ranks(cp)) if cp > 1 => <Ring>::NAME,
                _ => Single::NAME,
            },
        };
        let (ranks, grid) = match asked {
            Some(RankCount::Ranks(ranks)) => (ranks, None),
            Some(RankCount::Grid(outer, inner)) => (outer * inner, Some(Grid { outer, inner, inner_adjacent: true })),
            None => (1, None),
        };
        let mut choice = select::checked(&Choice {
            strategy: strategy.to_string(),
            order: self.order.clone().unwrap_or_default(),
            layout: self.layout.clone(),
            kernel: self.kernel.clone(),
            degree: ranks,
            grid: None,
            effort: self.effort,
            stages: self.stages,
        })?;
        if let Some(effort) = self.effort.filter(|&effort| effort > MOST_MOVES) {
            return Err(numbers(format!("--effort is {effort}: use {MOST_MOVES} moves or less")));
        }
        if asked.is_none() && choice.strategy != Single::NAME {
            choice.degree = 2;
        }
        let is_grid = choice.strategy == <RingUlysses>::NAME;
        if let (Some(cp), Some(_), false) = (&self.cp, grid, is_grid) {
            let (strategy, ranks) = (&choice.strategy, choice.degree);
            return Err(numbers(format!(
                "--cp is {cp}, but {strategy} has one degree: use --cp {ranks}, or --strategy ring-ulysses"
            )));
        }
        if self.inner_adjacent.is_some() && !is_grid {
            let strategy = &choice.strategy;
            return Err(numbers(format!(
                "--inner-adjacent is for ring-ulysses, not for {strategy}: leave it out, or use --strategy ring-ulysses"
            )));
        }
        choice.grid = grid;
        Ok(Settings { choice, threads: 1, dtype, inner_adjacent: self.inner_adjacent.unwrap_or(true) })
    }
}

impl Settings {
    /// In what numbers gradients of keys and values travel; refuses a rounding that would be none.
    pub fn gradient_wire(&self, bf16_wire: bool) -> Result<Wire> {
        if !bf16_wire {
            return Ok(Wire::Accumulated);
        }
        if self.dtype != DType::Bf16 {
            let dtype = self.dtype;
            let message =
                format!("--bf16-wire is for --dtype bf16, not for {dtype}: leave it out, or use --dtype bf16");
            return Err(numbers(message));
        }
        if self.choice.degree == 1 {
            return Err(numbers(
                "--bf16-wire is for several ranks, --cp is 1: leave it out, or use --cp 2".to_string(),
            ));
        }
        Ok(Wire::Stored)
    }

    /// Chooses how `ring-ulysses` groups the ranks where the user has not, and refuses heads that cannot be shared out.
    pub fn fit_heads(&mut self, q_heads: usize) -> Result<()> {
        self.choice = select::fit_heads(self.choice.clone(), q_heads)?;
        if let Some(grid) = &mut self.choice.grid {
            grid.inner_adjacent = self.inner_adjacent;
        }
        Ok(())
    }

    /// Whether every document gets ranks of its own.
    pub fn is_dynamic(&self) -> bool {
        self.choice.strategy == <Dynamic>::NAME
    }

    /// The limit on the tokens of a rank in a micro-batch; refuses one for a strategy that makes no micro-batches, and
    /// one that a document of these lengths does not keep.
    pub fn tokens_per_rank(&self, asked: Option<usize>, lengths: &[usize]) -> Result<Option<usize>> {
        let Some(tokens) = asked else { return Ok(None) };
        if !self.is_dynamic() {
            let strategy = &self.choice.strategy;
            return Err(numbers(format!(
                "--tokens-per-rank is for dynamic, not for {strategy}: leave it out, or use --strategy dynamic"
            )));
        }
        let tokens = positive("--tokens-per-rank", tokens)?;
        check_fits(lengths, self.choice.degree, tokens)
            .map_err(|error| numbers(format!("--tokens-per-rank is {tokens}: {error}")))?;
        Ok(Some(tokens))
    }

    /// What separates documents; refuses layouts that cannot hold sequences of different lengths.
    pub fn separator(&self, asked: Option<&str>) -> Result<Option<Separator>> {
        let Some(text) = asked else { return Ok(None) };
        if self.choice.layout != Thd::NAME {
            let layout = &self.choice.layout;
            return Err(numbers(format!(
                "--document-separator makes sequences of different lengths, which layout {layout} does not hold: use \
                 --layout thd, or leave it out"
            )));
        }
        Separator::new(unescaped("--document-separator", text)?).map(Some)
    }

    /// Refuses sequences of different lengths in a layout that does not hold them; `what` has them.
    pub fn check_lengths(&self, what: &str, lengths: &[usize]) -> Result<()> {
        let (layout, first) = (&self.choice.layout, lengths.first().copied().unwrap_or(0));
        match lengths.iter().find(|&&length| length != first) {
            Some(other) if layout != Thd::NAME => Err(numbers(format!(
                "{what} has documents of {first} and of {other} tokens, but layout {layout} holds sequences of one \
                 length: use --layout thd"
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses more ranks than a sequence has tokens, where all ranks share each.
    pub fn check_seq_len(&self, seq_len: usize) -> Result<()> {
        let cp = self.choice.degree;
        if cp > seq_len && !self.is_dynamic() {
            return Err(numbers(format!(
                "--cp is {cp} but sequences have {seq_len} tokens, so ranks would hold none: use --cp {seq_len} or less, \
                 or longer sequences"
            )));
        }
        Ok(())
    }
}

/// A number format.
pub fn dtype(name: &str) -> Result<DType> {
    pick("dtype", name, DTYPES, &[])
}

/// A degree as the user writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RankCount {
    Ranks(usize),
    /// Outer and inner degree.
    Grid(usize, usize),
}

/// A number of ranks, or an outer and an inner degree.
fn degree(text: &str) -> Result<RankCount> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    match text.split_once(['x', 'X']) {
        Some((outer, inner)) if is_number(outer) && is_number(inner) => {
            match (outer.parse::<usize>(), inner.parse::<usize>()) {
                (Ok(outer @ 1..), Ok(inner @ 1..)) if outer.checked_mul(inner).is_some() => {
                    Ok(RankCount::Grid(outer, inner))
                }
                _ => Err(numbers(format!("--cp is {text}: use two degrees of at least 1, such as 2x2"))),
            }
        }
        None if text.trim().parse::<usize>().is_ok() => ranks(text).map(RankCount::Ranks),
        _ => Err(not_a_degree(text, ", or two of them for ring-ulysses, such as 2x2")),
    }
}

fn not_a_degree(text: &str, more: &str) -> context_parallel::error::Error {
    numbers(format!("--cp is \"{text}\": use a number of ranks, such as 2{more}"))
}

/// A number of ranks.
fn ranks(text: &str) -> Result<usize> {
    match text.trim().parse() {
        Ok(0) => Err(numbers("--cp is 0: use at least 1 rank".to_string())),
        Ok(cp) => Ok(cp),
        Err(_) => Err(not_a_degree(text, "")),
    }
}

/// Numbers of ranks, separated by commas.
pub fn rank_list(text: &str) -> Result<Vec<usize>> {
    text.split(',').map(ranks).collect()
}

/// Most threads of a rank on a machine with fewer cores.
const MOST_THREADS: usize = 64;

/// Threads per rank: as asked for, else the cores shared out.
pub fn threads(asked: Option<usize>, ranks: usize) -> Result<usize> {
    match asked {
        Some(threads) => given_threads(threads),
        None => Ok((cores() / ranks).max(1)),
    }
}

/// Refuses threads that the machine would only start and wait for.
pub fn given_threads(threads: usize) -> Result<usize> {
    let most = cores().max(MOST_THREADS);
    match positive("--threads", threads)? {
        threads if threads <= most => Ok(threads),
        _ => Err(numbers(format!(
            "--threads is {threads}: a rank takes at most {most} on this machine ({} cores), use fewer",
            cores()
        ))),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

/// Text in which `\n`, `\r`, `\t`, `\0` and `\\` stand for one byte.
fn unescaped(option: &str, text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        out.push(match letter {
            '\\' => match letters.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some('0') => '\0',
                Some('\\') => '\\',
                other => {
                    let escape = other.map_or("\\ at its end".to_string(), |letter| format!("\\{letter}"));
                    return Err(numbers(format!("{option} has {escape}: use \\n, \\r, \\t, \\0, and \\\\ for \\")));
                }
            },
            letter => letter,
        });
    }
    Ok(out)
}

/// Refuses 0.
pub fn positive(option: &str, value: usize) -> Result<usize> {
    match value {
        0 => Err(numbers(format!("{option} is 0: use at least 1"))),
        value => Ok(value),
    }
}

/// Refuses what is not a finite number of at least 0.
pub fn not_negative(option: &str, value: f64) -> Result<f64> {
    if value.is_finite() && value >= 0.0 {
        return Ok(value);
    }
    Err(numbers(format!("{option} is {value}: use 0 or a number above it")))
}

/// Documents of something that has none.
pub fn no_documents() -> context_parallel::error::Error {
    numbers("--document-separator is for a text, which the recall task is not: leave it out, or use --data FILE".into())
}

#[cfg(test)]
mod tests;
