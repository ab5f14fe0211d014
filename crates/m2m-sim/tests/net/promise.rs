//! Random scenarios under the ledger's eyes. `M2M_SEED=n` runs seed n alone and shows what led to its failure.
use m2m_sim::scenario;

/// Few enough for every `cargo test`; `cargo xtask sim` runs thousands.
const SEEDS: u64 = 60;

fn check(seed: u64) {
    let report = scenario::run(seed, false);
    if report.violations.is_empty() {
        return;
    }
    let lines = scenario::run(seed, true).lines.join("\n  ");
    panic!("M2M_SEED={seed}: {}\nthe last lines:\n  {lines}", report.violations.join("; "));
}

#[test]
fn the_promise_holds_whatever_the_network_does() {
    match std::env::var("M2M_SEED") {
        Ok(seed) => check(seed.parse().expect("M2M_SEED is a number")),
        Err(_) => (0..SEEDS).for_each(check),
    }
}

#[test]
fn the_same_seed_runs_the_same_way_byte_for_byte() {
    let [first, again, traced, other] =
        [(7, false), (7, false), (7, true), (8, false)].map(|(seed, lines)| scenario::run(seed, lines));
    assert_eq!(first.hash, again.hash);
    assert_eq!(first.hash, traced.hash, "looking changes nothing");
    assert_eq!(first.totals, again.totals);
    assert_ne!(first.hash, other.hash);
    assert!(!traced.lines.is_empty());
}

#[test]
fn scenarios_are_worth_their_name() {
    let mut totals = m2m_sim::ledger::Totals::default();
    for seed in 1_000..1_010 {
        totals.add(&scenario::run(seed, false).totals);
    }
    let answered = totals.fates.get("answered").copied().unwrap_or(0);
    assert!(2 * answered > totals.requests, "most are answered: {totals:?}");
    assert!(totals.fates.contains_key("timed out") && totals.fates.len() > 3, "not all are: {totals:?}");
}
