//! Where the ranks of the program live: threads of this process, or processes. They have a boxed communicator, so that
//! each combination is compiled for one type of it.

use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use context_parallel::comm::threads::{self, Waiting};
use context_parallel::comm::{Collectives, Communicator, DynComm};
use context_parallel::error::Result;
use context_parallel::tensor::{Device, Element};
use indicatif::ProgressBar;

use super::args::{self, Choices, Settings, Transport};
use super::hardware::RankDevice;
use super::output;

/// Where the ranks of a command live. Every process runs the same command in the same order.
#[derive(Debug)]
pub enum Cluster {
    /// All in this process.
    Threads(Waiting),
    /// One in each process.
    #[cfg(feature = "mpi")]
    Mpi(context_parallel::comm::mpi::MpiComm),
}

/// Runs a command where `asked` says, and reports its error, once.
pub fn start(asked: &args::EngineArguments, command: impl FnOnce(&Cluster) -> Result<ExitCode>) -> ExitCode {
    let asked = asked.transport().and_then(|transport| Ok((transport, Duration::from_secs(asked.deadline()?))));
    let result = match asked {
        Err(error) => Err(error),
        Ok((Transport::Threads, deadline)) => command(&Cluster::Threads(Waiting { deadline, ..Waiting::default() })),
        #[cfg(feature = "mpi")]
        Ok((Transport::Mpi, deadline)) => {
            use context_parallel::comm::mpi;
            let options = mpi::MpiOptions { deadline, ..mpi::MpiOptions::default() };
            let ended = mpi::run_with(options, |comm| command(&Cluster::Mpi(comm)));
            if let Err(error) = ended.result()
                && !ended.is_repeated()
            {
                output::error(error);
            }
            // The launcher passes on the code of whichever process ends first.
            let code = code(ended.result(), ended.is_input());
            // Nothing is left to print: the launcher may end the others when the first one is gone.
            drop(ended.leave());
            return code;
        }
    };
    if let Err(error) = &result {
        output::error(error);
    }
    code(&result, result.as_ref().is_err_and(|error| error.is_input()))
}

fn code(result: &Result<ExitCode>, is_input: bool) -> ExitCode {
    match result {
        Ok(code) => *code,
        Err(_) => ExitCode::from(if is_input { 2 } else { 1 }),
    }
}

impl Cluster {
    /// Whether this process is the one that prints and writes.
    pub fn speaks(&self) -> bool {
        match self {
            Cluster::Threads(_) => true,
            #[cfg(feature = "mpi")]
            Cluster::Mpi(comm) => comm.rank() == 0,
        }
    }

    /// The ranks, of so many, that live in this process.
    pub fn local(&self, ranks: usize) -> Range<usize> {
        match self {
            Cluster::Threads(_) => 0..ranks,
            #[cfg(feature = "mpi")]
            Cluster::Mpi(comm) => comm.rank().min(ranks)..(comm.rank() + 1).min(ranks),
        }
    }

    /// Most ranks that there can be, if there is a limit.
    fn limit(&self) -> Option<usize> {
        match self {
            Cluster::Threads(_) => None,
            #[cfg(feature = "mpi")]
            Cluster::Mpi(comm) => Some(comm.size()),
        }
    }

    /// Refuses more ranks than there can be.
    pub fn check(&self, ranks: usize) -> Result<()> {
        let Some(limit) = self.limit().filter(|&limit| ranks > limit) else { return Ok(()) };
        let there = if limit == 1 { "there is 1 process".into() } else { format!("there are {limit} processes") };
        Err(args::numbers(format!(
            "--cp is {ranks} but {there}: use --cp {limit} or less, or start more (mpirun -n {ranks})"
        )))
    }

    /// Threads of each of so many ranks: as asked for, else the machine's cores shared out over the ranks on it.
    pub fn threads(&self, asked: Option<usize>, ranks: usize) -> Result<usize> {
        let here = match self {
            Cluster::Threads(_) => ranks,
            #[cfg(feature = "mpi")]
            Cluster::Mpi(comm) => ranks.min(comm.neighbours()),
        };
        args::threads(asked, here)
    }

    /// Runs `body` on `ranks` ranks, each with the device that `open` gives it. Gives the first rank's result in the process where it lives, and nothing in
    /// others; a process whose rank does not take part goes on at once. The body is behind a pointer so that threads
    /// and their mailboxes are compiled once per result, not once per combination.
    pub fn on_ranks<D: RankDevice, R: Send>(
        &self,
        ranks: usize,
        open: &(dyn Fn(usize) -> Result<D> + Sync),
        body: &(dyn Fn(D, DynComm<D::Storage>) -> Result<R> + Sync),
    ) -> Result<Option<R>> {
        match self {
            Cluster::Threads(waiting) => {
                let starting = Mutex::new(Some(output::phase(format!("starting {}", output::many(ranks, "rank")))));
                let started = AtomicUsize::new(0);
                let results = threads::run_on::<D::Storage, _, _>(waiting.clone(), ranks, |comm| {
                    if started.fetch_add(1, Ordering::Relaxed) + 1 == ranks {
                        starting.lock().unwrap_or_else(PoisonError::into_inner).take();
                    }
                    body(open(comm.rank())?, Box::new(comm))
                })?;
                Ok(results.into_iter().next())
            }
            #[cfg(feature = "mpi")]
            Cluster::Mpi(world) => {
                let takes_part = world.rank() < ranks;
                let starting = output::phase(format!("waiting for {}", output::many(world.size(), "process")));
                let comm = world.split(usize::from(!takes_part), 0)?;
                drop(starting);
                let run = || {
                    let device = open(comm.rank())?;
                    let comm = device.over_host(comm);
                    body(device, comm)
                };
                let result = takes_part.then(run).transpose()?;
                Ok(result.filter(|_| self.speaks()))
            }
        }
    }

    /// A bar, where this process speaks.
    pub fn bar(&self, steps: u64, what: &'static str) -> ProgressBar {
        if self.speaks() { output::bar(steps, what) } else { ProgressBar::hidden() }
    }
}

impl Choices {
    /// Checks every choice, those that depend on each other, and that there are as many ranks.
    pub fn settings(&self, cluster: &Cluster) -> Result<Settings> {
        let mut settings = self.combination.settings()?;
        settings.hardware = self.engine.device.hardware(settings.dtype)?;
        cluster.check(settings.choice.degree)?;
        settings.threads = cluster.threads(self.threads, settings.choice.degree)?;
        Ok(settings)
    }
}

/// Everyone's text, by rank.
pub fn gather_texts<D: Device>(device: &D, comm: &dyn Communicator<D::Storage>, mine: &str) -> Result<Vec<String>> {
    let lengths = gather(device, comm, &[mine.len() as i64])?;
    let counts: Vec<usize> = lengths.iter().map(|length| length[0] as usize).collect();
    let all = comm.all_gather_v(device.upload(mine.as_bytes()), &counts)?;
    all.iter().map(|text| Ok(String::from_utf8_lossy(&device.read(text)?).into_owned())).collect()
}

/// Everyone's numbers, by rank.
pub fn gather<D: Device, T: Element>(
    device: &D,
    comm: &dyn Communicator<D::Storage>,
    mine: &[T],
) -> Result<Vec<Vec<T>>> {
    let counts = vec![mine.len(); comm.size()];
    let all = comm.all_gather_v(device.upload(mine), &counts)?;
    all.iter().map(|numbers| device.read(numbers)).collect()
}
