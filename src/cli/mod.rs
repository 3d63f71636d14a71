//! The command line: parses, calls the library, prints.
//!
//! Progress goes to stderr, results to stdout. Exit codes: 0 fine, 2 the user's input is wrong, 1 a failure at run
//! time, 130 an interrupt.

mod args;
mod bench;
mod demo;
mod engine;
mod eval;
mod inputs;
mod inspect;
mod interrupt;
mod machine;
mod memory;
mod model;
mod output;
mod sets;
mod step;
mod train;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

/// Trains and runs GPT models on sequences split over ranks; the way of splitting is a type. Without a command it runs
/// the demo.
#[derive(Parser)]
#[command(name = "context-parallel", version, args_conflicts_with_subcommands = true, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    demo: demo::Arguments,
    /// Print results and errors only, no progress
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
    /// Print a script that lets a shell complete commands, options and names: source <(context-parallel completions bash)
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Runs the program; its arguments come from the environment.
pub fn main() -> ExitCode {
    let Cli { command, demo, quiet } = Cli::parse();
    if quiet {
        output::be_quiet();
    }
    let command = command.unwrap_or(Command::Demo(demo));
    let engine = match &command {
        Command::Train(arguments) => arguments.choices.engine.clone(),
        Command::Eval(arguments) => arguments.choices.engine.clone(),
        Command::Verify(arguments) => arguments.engine.clone(),
        Command::Demo(_) | Command::Bench(_) | Command::Inspect(_) | Command::Completions { .. } => {
            args::Engine::default()
        }
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
        let next = Cli::try_parse_from(demo::NEXT.split(' ')).map(|cli| cli.command);
        assert!(matches!(next, Ok(Some(Command::Train(_)))), "what the demo says to try next");
    }
}
