//! What is told: a line a minute, and all of it at the end.
use std::{collections::BTreeMap, fmt::Write as _, sync::atomic::Ordering};

use crate::{
    actor::Counters,
    gate::Network,
    ledger::Ledger,
    watch::{self, Sample, Watch},
};

/// What has happened so far, in one line.
pub(crate) fn line(minute: u64, ledger: &Ledger, sample: &Sample) -> String {
    let of = |name: &str| ledger.happenings.get(name).copied().unwrap_or(0);
    let hostile: u64 =
        ledger.happenings.iter().filter(|(name, _)| name.starts_with("hostile")).map(|(_, n)| n).sum();
    let restarts = of("restarts of devices") + of("restarts of apps");
    format!(
        "minute {minute}: {} requests, {} runs, {} answered; {restarts} restarts of members, {} of hosts, {} visits, {} outages, \
         {} changes of address, {hostile} hostile packets; memory {} KiB, host {} KiB; {} descriptors, {} tasks, {} sessions, \
         {} registrations; CPU {:.0} s; violations: {}",
        ledger.sent,
        ledger.runs,
        answered(&ledger.fates),
        of("restarts of the host") + of("hosts killed"),
        of("nets opened for a visit"),
        of("outages"),
        of("changes of address"),
        sample.memory,
        sample.host_memory,
        sample.descriptors,
        sample.tasks,
        sample.sessions,
        sample.registrations,
        watch::cpu_seconds(std::process::id()),
        ledger.violations,
    )
}

fn answered(fates: &BTreeMap<String, u64>) -> u64 {
    fates.iter().filter(|(name, _)| name.ends_with("answered")).map(|(_, count)| count).sum()
}

/// All of it, and whether it is well.
pub(crate) fn summary(ledger: &Ledger, network: &Network, counters: &Counters, watch: &Watch) -> bool {
    let (growth, grown) = watch.judge();
    let mut text = String::new();
    let _ = writeln!(text, "\nrequests: {}, runs of handlers: {}", ledger.sent, ledger.runs);
    rows(&mut text, "what became of them", ledger.fates.iter().map(|(name, count)| (name.as_str(), *count)));
    let happenings = ledger.happenings.iter().map(|(name, count)| (*name, *count));
    rows(&mut text, "what happened", happenings);
    let packets = [
        ("passed", &network.passed),
        ("lost", &network.lost),
        ("doubled", &network.doubled),
        ("delayed", &network.delayed),
        ("damaged", &network.damaged),
    ];
    let packets = packets.map(|(name, count)| (name, count.load(Ordering::Relaxed)));
    rows(&mut text, "packets at the gates", packets.into_iter());
    let counted =
        counters.iter().map(|(name, count)| (name.as_str(), *count)).filter(|(_, count)| *count > 0);
    rows(&mut text, "what the nets counted", counted);
    let _ = write!(text, "medians of the quarters\n{growth}");
    println!("{text}");
    for words in &grown {
        println!("GROWTH: {words}");
    }
    if ledger.violations > 0 {
        println!("violations: {}", ledger.violations);
    }
    let is_well = ledger.violations == 0 && grown.is_empty();
    let verdict = match (is_well, watch.is_long()) {
        (true, true) => "the ledger balances, and nothing grew".to_owned(),
        (true, false) => {
            format!(
                "the ledger balances; whether anything grows shows after {} minutes only",
                watch::WARM.as_secs() / 60
            )
        }
        (false, _) => "FAILED".to_owned(),
    };
    println!("{verdict}");
    is_well
}

fn rows<'a>(text: &mut String, title: &str, rows: impl Iterator<Item = (&'a str, u64)>) {
    let _ = writeln!(text, "{title}");
    for (name, count) in rows {
        let _ = writeln!(text, "  {name:44}{count:>12}");
    }
}
