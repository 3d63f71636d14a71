//! The command line: parses, calls the library, prints.
//!
//! Progress goes to stderr, results to stdout. Exit codes: 0 fine, 2 the user's input is wrong, 1 a failure at run
//! time, 130 an interrupt.

mod args;
mod bench;
mod demo;
mod doctor;
mod engine;
mod eval;
mod hardware;
mod inputs;
mod inspect;
mod interrupt;
mod machine;
mod memory;
mod model;
mod output;
mod recall;
mod sets;
mod step;
mod train;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

/// Trains and runs GPT models on sequences split over ranks; the way of splitting is a type. Without a command it runs
/// the demo.
#[derive(Parser)]
#[command(name = "context-parallel", version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    demo: demo::Arguments,
    /// Print results, warnings and errors only, no progress
    #[arg(short, long, global = true, help_heading = args::OUTPUT)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Train(Box<train::Arguments>),
    Eval(Box<eval::Arguments>),
    Verify(verify::Arguments),
    Inspect(inspect::Arguments),
    Bench(bench::Arguments),
    Doctor(doctor::Arguments),
    /// Print a script that lets a shell complete commands, options and names: source <(context-parallel completions
    /// bash)
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// The command line. Before a command there may be `--quiet` alone: the other options there are the demo's.
fn parse(words: impl Iterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut command = Cli::command();
    let matches = command.clone().try_get_matches_from(words)?;
    let is_given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let of_demo =
        command.get_arguments().map(|option| option.get_id().as_str()).find(|&id| id != "quiet" && is_given(id));
    if let (Some(name), Some(option)) = (matches.subcommand_name(), of_demo) {
        let message = format!("--{option} before {name} is the demo's: write it after {name}, or leave it out");
        return Err(command.error(ErrorKind::ArgumentConflict, message));
    }
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Runs the program; its arguments come from the environment.
pub fn main() -> ExitCode {
    let Cli { command, demo, quiet } = parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    if quiet {
        output::be_quiet();
    }
    let command = command.unwrap_or(Command::Demo(demo));
    let engine = match &command {
        Command::Train(arguments) => arguments.choices.engine.clone(),
        Command::Eval(arguments) => arguments.choices.engine.clone(),
        Command::Verify(arguments) => arguments.engine.clone(),
        Command::Demo(_)
        | Command::Bench(_)
        | Command::Doctor(_)
        | Command::Inspect(_)
        | Command::Completions { .. } => args::EngineArguments::default(),
    };
    engine::start(&engine, |cluster| {
        if !cluster.speaks() {
            output::be_quiet();
        }
        interrupt::watch();
        match command {
            Command::Demo(arguments) => demo::run(arguments, cluster),
            Command::Train(arguments) => train::run(*arguments, cluster),
            Command::Eval(arguments) => eval::run(*arguments, cluster),
            Command::Verify(arguments) => verify::run(arguments, cluster),
            Command::Inspect(arguments) => inspect::run(arguments),
            Command::Bench(arguments) => bench::run(arguments, cluster),
            Command::Doctor(arguments) => doctor::run(&arguments),
            Command::Completions { shell } => Ok(completions(shell)),
        }
    })
}

fn completions(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "context-parallel", &mut script);
    // clap_complete 4.6 looks a command up by another name than it gives it where the program's name has a hyphen.
    let script = String::from_utf8_lossy(&script).replace("context__subcmd__parallel", "context__parallel");
    output::line(script.trim_end());
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
        let parse = |line: &str| parse(line.split(' ').map(OsString::from));
        for line in ["context-parallel -q train", "context-parallel train -q", "context-parallel -q"] {
            assert!(parse(line).is_ok_and(|cli| cli.quiet), "{line}");
        }
        assert!(parse("context-parallel --seed 1").is_ok_and(|cli| !cli.quiet && cli.command.is_none()));
        for line in ["context-parallel --seed 1 train", "context-parallel -q --seed 1 demo"] {
            assert!(parse(line).is_err_and(|error| error.to_string().contains("--seed before")), "{line}");
        }
        let next = Cli::try_parse_from(demo::NEXT.split(' ')).map(|cli| cli.command);
        assert!(matches!(next, Ok(Some(Command::Train(_)))), "what the demo says to try next");
    }
}
