//! What runs at once in a step: how much of it, and in words how `dynamic` cuts it.

use std::collections::BTreeMap;

use context_parallel::error::Result;
use context_parallel::solve::schedule::{Schedule, Scheduler, default_tokens_per_rank};

use super::super::output;
use super::job::Job;

/// Steps that are looked at before the first one, where sequences differ in length.
const STEPS: u64 = 64;

/// Most tokens that a process has at once, about: those of a micro-batch, or of a step of dynamic. Of the first steps,
/// which are like the others.
pub fn tokens_at_once(job: &Job) -> usize {
    let options = &job.options;
    let sequences = options.batch * options.accumulate;
    let at_once = if job.settings.is_dynamic() { sequences } else { options.batch };
    if let [length] = job.source.possible_lengths(options.seq_len)[..] {
        return at_once.saturating_mul(length);
    }
    let largest = |step| {
        let step = options.first_step + step;
        let lengths = job.source.lengths(options.seed, step, 0..sequences, options.seq_len);
        lengths.chunks(at_once).map(|lengths| lengths.iter().sum()).max().unwrap_or(0)
    };
    (0..options.schedule.steps().min(STEPS)).map(largest).max().unwrap_or(0)
}

/// Most rows of a rank in a micro-batch, about, where there are so many tokens at once. Under dynamic as many as the
/// scheduler may give a rank.
pub fn rows_per_rank(job: &Job, tokens: usize) -> usize {
    let ranks = job.settings.choice.degree;
    match (job.settings.is_dynamic(), job.tokens_per_rank) {
        (false, _) => tokens.div_ceil(ranks),
        (true, None) => default_tokens_per_rank(tokens, ranks),
        (true, Some(limit)) => limit.min(tokens),
    }
}

/// How the first step is cut; the ranks find the schedule again in `scheduler`.
pub fn describe_first(job: &Job, scheduler: &Scheduler) -> Result<String> {
    let options = &job.options;
    let sequences = options.batch * options.accumulate;
    let lengths = job.source.lengths(options.seed, options.first_step, 0..sequences, options.seq_len);
    let schedule = scheduler.schedule(&lengths, job.settings.choice.degree)?;
    Ok(format!("step 1: {}", describe(&lengths, &schedule)))
}

fn describe(lengths: &[usize], schedule: &Schedule) -> String {
    let report = &schedule.report;
    let mut degrees = BTreeMap::<usize, usize>::new();
    for group in schedule.micro_batches.iter().flat_map(|micro| &micro.groups) {
        *degrees.entry(group.degree).or_default() += 1;
    }
    let on = |(degree, count): (&usize, &usize)| match degree {
        1 => format!("{count} on 1 rank"),
        degree => format!("{count} on {degree} ranks"),
    };
    format!(
        "{} ({}) in {} of at most {} per rank; {}; {} of keys and values received; makespan {:.3} times the bound",
        output::many(lengths.len(), "document"),
        output::many(lengths.iter().sum(), "token"),
        output::many(schedule.micro_batches.len(), "micro-batch"),
        output::many(report.tokens_per_rank, "token"),
        degrees.iter().map(on).collect::<Vec<_>>().join(", "),
        output::many(usize::try_from(report.rows_received).unwrap_or(usize::MAX), "row"),
        relative_makespan(schedule),
    )
}

/// The makespan over its lower bound; 1 where there is no work.
fn relative_makespan(schedule: &Schedule) -> f64 {
    let (makespan, bound) = (schedule.report.makespan.to_f64(), schedule.report.makespan_bound.to_f64());
    if bound > 0.0 { makespan / bound } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use context_parallel::solve::schedule::schedule;

    #[test]
    fn a_schedule_is_one_line() {
        let words = |lengths: &[usize], ranks, tokens| describe(lengths, &schedule(lengths, ranks, tokens).unwrap());
        let text = words(&[1000, 1000, 1000], 3, None);
        assert_eq!(
            text,
            "3 documents (3,000 tokens) in 1 micro-batch of at most 1,000 tokens per rank; 3 on 1 rank; 0 rows of keys \
             and values received; makespan 1.000 times the bound"
        );
        let text = words(&[1000; 3], 2, Some(500));
        assert!(
            text.contains("in 3 micro-batches of at most 500 tokens") && text.contains("3 on 2 ranks; 3,000 rows"),
            "{text}"
        );
        assert!(words(&[0], 2, Some(500)).contains("makespan 1.000"));
    }
}
