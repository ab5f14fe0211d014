//! Figures of phases, and what they come to.
use crate::{attack::Kind, server::Counters};

/// A host that uses more of its core than this has no time to spare.
const SATURATED: f64 = 0.9;

/// What happened in one stretch of time.
pub(crate) struct Phase {
    pub(crate) seconds: f64,
    /// Packets that the attackers sent.
    pub(crate) flood: u64,
    pub(crate) served: u64,
    pub(crate) failed: u64,
    /// Datagrams that the host's socket had no room for.
    pub(crate) lost: u64,
    /// Seconds of CPU that the host used.
    pub(crate) cpu: f64,
    pub(crate) counters: Counters,
}

impl Phase {
    pub(crate) fn served_rate(&self) -> f64 {
        self.served as f64 / self.seconds
    }

    pub(crate) fn packets_in_rate(&self) -> f64 {
        self.counters.get("in") as f64 / self.seconds
    }

    pub(crate) fn packets_out_rate(&self) -> f64 {
        self.counters.get("out") as f64 / self.seconds
    }

    pub(crate) fn cpu_per_request(&self) -> f64 {
        self.cpu / self.served.max(1) as f64
    }

    pub(crate) fn cpu_share(&self) -> f64 {
        self.cpu / self.seconds
    }
}

/// The phases of one kind of flood: a quiet one before and after each flooded one.
#[derive(Default)]
pub(crate) struct Rounds {
    pub(crate) quiet: Vec<Phase>,
    pub(crate) flooded: Vec<Phase>,
}

pub(crate) fn heading() {
    println!(
        "kind                     rate  (least)  per CPU  (least)   packets/s  failed  lost  counted in the flooded phases"
    );
}

impl Rounds {
    /// Tells the figures. What counts is the requests served for a second of the host's CPU: its rate, were it the limit.
    /// The rate itself counts too where the host is the limit; else it is that of the clients, on whose core the attackers
    /// work as well.
    pub(crate) fn report(&self, kind: Kind) -> f64 {
        let of = |figure: fn(&Phase) -> f64| {
            let pairs = self.quiet.windows(2).zip(&self.flooded);
            let ratios = pairs
                .map(|(around, flooded)| figure(flooded) / ((figure(&around[0]) + figure(&around[1])) / 2.0));
            let mut ratios: Vec<f64> = ratios.collect();
            ratios.sort_by(f64::total_cmp);
            (ratios[ratios.len() / 2], ratios[0])
        };
        let (rate, least_rate) = of(Phase::served_rate);
        let (efficiency, least_efficiency) = of(|phase| 1.0 / phase.cpu_per_request());
        let seconds: f64 = self.flooded.iter().map(|phase| phase.seconds).sum();
        let flood: u64 = self.flooded.iter().map(|phase| phase.flood).sum();
        let failed: u64 = self.flooded.iter().map(|phase| phase.failed).sum();
        let lost: u64 = self.flooded.iter().map(|phase| phase.lost).sum();
        let mut counters = Counters::default();
        self.flooded.iter().for_each(|phase| counters.add(&phase.counters));
        let counted = counters.0.iter().filter(|(name, count)| *count > 0 && name != "in" && name != "out");
        let counted: Vec<String> = counted.map(|(name, count)| format!("{name} {count}")).collect();
        println!(
            "{:24} {rate:.3} ({least_rate:.3})  {efficiency:.3}   ({least_efficiency:.3})  {:9.0}  {failed:6}  {lost:4}  of {flood}: {}",
            kind.name(),
            flood as f64 / seconds,
            counted.join(", ")
        );
        let is_limit = self.quiet.iter().all(|phase| phase.cpu_share() > SATURATED);
        match efficiency.is_finite() {
            true if is_limit => rate.min(efficiency),
            true => efficiency,
            false => rate,
        }
    }
}
