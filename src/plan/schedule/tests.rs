//! Schedules against lower bounds, against the outcomes of other schedulers, and against the rules that bind them.

use super::*;

#[test]
fn table() {
    let cases: &[(&[usize], usize, Option<usize>)] = &[
        (&[6000, 3000, 1500, 700, 300, 100], 8, Some(1024)),
        (&[2000, 900, 900, 900, 400, 300, 200], 4, Some(1024)),
        (&[4096, 2048, 1024, 512], 8, Some(1 << 20)),
        (&[1024; 3], 4, Some(1 << 20)),
        (&[8192, 1024, 1024, 1024], 8, Some(1 << 20)),
        (&[6000, 3000, 1500, 700, 300, 100], 8, Some(1 << 20)),
        (&[2000, 900, 900, 900, 400, 300, 200], 4, Some(1 << 20)),
        (&[100], 8, None),
        (&[6000, 3000, 1500, 700, 300, 100], 8, None),
    ];
    for (lengths, ranks, tokens) in cases {
        let t = std::time::Instant::now();
        let s = schedule(lengths, *ranks, *tokens).unwrap();
        println!("{lengths:?} {ranks} {tokens:?} {:?}", t.elapsed());
        for m in &s.micro_batches {
            println!("   {:?}", m.groups.iter().map(|g| (lengths[g.document], g.first, g.degree)).collect::<Vec<_>>());
        }
        println!("   {}", serde_json::to_string(&s.report).unwrap());
        println!("   reference {}", reference::makespan(lengths, *ranks, tokens.unwrap_or(1 << 20)));
    }
}
