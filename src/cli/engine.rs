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
    Threads(Waiting, Carrier),
    /// One in each process.
    #[cfg(feature = "mpi")]
    Mpi(context_parallel::comm::mpi::MpiComm, Carrier),
}

/// How long ranks that are done wait for the end of what connected their GPUs, before they go on without.
#[cfg(feature = "cuda")]
const ENDING: Duration = Duration::from_secs(5);

/// What moves the messages of ranks.
#[derive(Clone, Copy, Debug)]
pub enum Carrier {
    /// What connects them.
    Own,
    /// NCCL, which waits for so long.
    #[cfg(feature = "cuda")]
    Nccl(Duration),
}

/// Runs a command where `asked` says, and reports its error, once.
pub fn start(asked: &args::EngineArguments, command: impl FnOnce(&Cluster) -> Result<ExitCode>) -> ExitCode {
    let asked = asked.transport().and_then(|transport| Ok((transport, Duration::from_secs(asked.deadline()?))));
    let waiting = |deadline| Waiting { deadline, ..Waiting::default() };
    let result = match asked {
        Err(error) => Err(error),
        Ok((Transport::Threads, deadline)) => command(&Cluster::Threads(waiting(deadline), Carrier::Own)),
        #[cfg(feature = "mpi")]
        Ok((Transport::Mpi, deadline)) => return under_mpi(deadline, Carrier::Own, command),
        #[cfg(all(feature = "cuda", feature = "mpi"))]
        Ok((Transport::Nccl, deadline)) if is_launched() => {
            return under_mpi(deadline, Carrier::Nccl(deadline), command);
        }
        #[cfg(all(feature = "cuda", not(feature = "mpi")))]
        Ok((Transport::Nccl, _)) if is_launched() => Err(args::numbers(
            "mpirun started this program, which was built without MPI: build with --features cuda,mpi, or start it \
             without mpirun for the GPUs of one machine"
                .to_string(),
        )),
        #[cfg(feature = "cuda")]
        Ok((Transport::Nccl, deadline)) => command(&Cluster::Threads(waiting(deadline), Carrier::Nccl(deadline))),
    };
    if let Err(error) = &result {
        output::error(error);
    }
    code(&result, result.as_ref().is_err_and(|error| error.is_input()))
}

/// Whether a launcher of MPI jobs started this process, as far as its environment says.
#[cfg(feature = "cuda")]
fn is_launched() -> bool {
    ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"].iter().any(|name| std::env::var_os(name).is_some())
}

#[cfg(feature = "mpi")]
fn under_mpi(deadline: Duration, carrier: Carrier, command: impl FnOnce(&Cluster) -> Result<ExitCode>) -> ExitCode {
    use context_parallel::comm::mpi;
    let options = mpi::MpiOptions { deadline, ..mpi::MpiOptions::default() };
    let ended = mpi::run_with(options, |comm| command(&Cluster::Mpi(comm, carrier)));
    if let Err(error) = ended.result()
        && !ended.is_repeated()
    {
        output::error(error);
    }
    // The launcher passes on the code of whichever process ends first.
    let code = code(ended.result(), ended.is_input());
    // Nothing is left to print: the launcher may end the others when the first one is gone.
    drop(ended.leave());
    code
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
            Cluster::Threads(..) => true,
            #[cfg(feature = "mpi")]
            Cluster::Mpi(comm, _) => comm.rank() == 0,
        }
    }

    /// The ranks, of so many, that live in this process.
    pub fn local(&self, ranks: usize) -> Range<usize> {
        match self {
            Cluster::Threads(..) => 0..ranks,
            #[cfg(feature = "mpi")]
            Cluster::Mpi(comm, _) => comm.rank().min(ranks)..(comm.rank() + 1).min(ranks),
        }
    }

    /// Most ranks that there can be, if there is a limit.
    fn limit(&self) -> Option<usize> {
        match self {
            Cluster::Threads(..) => None,
            #[cfg(feature = "mpi")]
            Cluster::Mpi(comm, _) => Some(comm.size()),
        }
    }

    /// Refuses more ranks than there can be, or than have a GPU where each takes one.
    pub fn check(&self, ranks: usize) -> Result<()> {
        #[cfg(feature = "cuda")]
        self.check_gpus(ranks)?;
        let Some(limit) = self.limit().filter(|&limit| ranks > limit) else { return Ok(()) };
        let there = if limit == 1 { "there is 1 process".into() } else { format!("there are {limit} processes") };
        Err(args::numbers(format!(
            "--cp is {ranks} but {there}: use --cp {limit} or less, or start more (mpirun -n {ranks})"
        )))
    }

    /// Refuses more ranks than there are GPUs, where each takes one. That no two
    /// processes take the same one is found when they connect: they may see one GPU each, or all.
    #[cfg(feature = "cuda")]
    fn check_gpus(&self, ranks: usize) -> Result<()> {
        let Cluster::Threads(_, Carrier::Nccl { .. }) = self else { return Ok(()) };
        let found = context_parallel::tensor::cuda::probe::gpus();
        let gpus = found.map_err(|error| args::numbers(format!("--device cuda: {error}")))?.0.len();
        if ranks <= gpus {
            return Ok(());
        }
        Err(args::numbers(format!(
            "--transport nccl takes a GPU for each rank, and this machine has {} for {}: use --cp {gpus} or less, or \
             --transport threads, whose ranks can share a GPU",
            output::many(gpus, "GPU"),
            output::many(ranks, "rank"),
        )))
    }

    /// The number of a rank of this process among those of this machine, which decides on its GPU.
    pub fn seat(&self, rank: usize) -> usize {
        match self {
            Cluster::Threads(..) => rank,
            #[cfg(feature = "mpi")]
            Cluster::Mpi(comm, _) => comm.seat(),
        }
    }

    /// Threads of each of so many ranks: as asked for, else the machine's cores shared out over the ranks on it.
    pub fn threads(&self, asked: Option<usize>, ranks: usize) -> Result<usize> {
        let here = match self {
            Cluster::Threads(..) => ranks,
            #[cfg(feature = "mpi")]
            Cluster::Mpi(comm, _) => ranks.min(comm.neighbours()),
        };
        args::threads(asked, here)
    }

    /// Runs `body` on `ranks` ranks, each with the device that `open` gives it. Gives the first rank's result in the
    /// process where it lives, and nothing in others; a process whose rank does not take part goes on at once. The body
    /// is behind a pointer so that threads and their mailboxes are compiled once per result, not once per combination.
    pub fn on_ranks<D: RankDevice, R: Send>(
        &self,
        ranks: usize,
        open: &(dyn Fn(usize) -> Result<D> + Sync),
        body: &(dyn Fn(D, DynComm<D::Storage>) -> Result<R> + Sync),
    ) -> Result<Option<R>> {
        match self {
            Cluster::Threads(waiting, carrier) => {
                let starting = Mutex::new(Some(output::phase(format!("starting {}", output::many(ranks, "rank")))));
                let started = AtomicUsize::new(0);
                let start = || {
                    if started.fetch_add(1, Ordering::Relaxed) + 1 == ranks {
                        starting.lock().unwrap_or_else(PoisonError::into_inner).take();
                    }
                };
                let results = match carrier {
                    Carrier::Own => threads::run_on::<D::Storage, _, _>(waiting.clone(), ranks, |comm| {
                        start();
                        body(open(comm.rank())?, Box::new(comm))
                    })?,
                    #[cfg(feature = "cuda")]
                    Carrier::Nccl(deadline) => {
                        let results = threads::run_with(waiting.clone(), ranks, |comm| {
                            start();
                            let device = open(comm.rank())?;
                            let comm = device.over_nccl(Box::new(comm), *deadline)?;
                            body(device, comm)
                        });
                        context_parallel::comm::nccl::ended(ENDING);
                        results?
                    }
                };
                Ok(results.into_iter().next())
            }
            #[cfg(feature = "mpi")]
            Cluster::Mpi(world, carrier) => {
                let takes_part = world.rank() < ranks;
                let starting = output::phase(format!("waiting for {}", output::many(world.size(), "process")));
                let comm = world.split(usize::from(!takes_part), 0)?;
                drop(starting);
                let run = || {
                    let device = open(comm.rank())?;
                    let comm = match carrier {
                        Carrier::Own => device.over_host(comm),
                        #[cfg(feature = "cuda")]
                        Carrier::Nccl(deadline) => device.over_nccl(comm, *deadline)?,
                    };
                    body(device, comm)
                };
                let result = takes_part.then(run).transpose();
                // An error has to be told first.
                #[cfg(feature = "cuda")]
                if result.is_ok() {
                    context_parallel::comm::nccl::ended(ENDING);
                }
                Ok(result?.filter(|_| self.speaks()))
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
