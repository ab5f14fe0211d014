//! Random scenarios under the ledger's eyes. `M2M_SEED=n` runs seed n alone and shows what led to its failure.
use m2m_proto::coap::code::Code;
use m2m_sim::scenario::{self, Manner, Plan, script};

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

/// The judge is told to object to each DELETE: what it then finds is a failure as good as any.
#[test]
fn a_failure_shrinks_to_a_short_script_that_fails_again() {
    let manner = Manner { objects_to: Some(Code::DELETE), ..Manner::default() };
    let kind = |plan: &Plan| {
        let report = scenario::run_plan(plan, manner);
        report.violations.first().map(|words| scenario::kind_of(words))
    };
    let plan =
        (0..50).map(scenario::throw).find(|plan| kind(plan).is_some()).expect("some net runs a DELETE");
    let wanted = kind(&plan);
    let small = scenario::shrink(&plan, |plan| kind(plan) == wanted, || true);
    let text = script::write(&small);
    let doings = text.lines().filter(|line| line.contains(" #")).count();
    assert!((1..=3).contains(&doings), "{text}");
    let again = script::parse(&text).expect("what was written can be read");
    assert_eq!(again, small);
    assert_eq!(kind(&again), wanted, "{text}");
    assert!(scenario::run_plan(&again, Manner::default()).violations.is_empty(), "nothing else is wrong");
}

/// The device was told STALE by what the host's clock had been, then AHEAD by what it is, and stayed out for half a minute.
#[test]
fn a_host_whose_clock_is_set_back_under_a_slow_store_takes_the_device_in() {
    let script = "seed 249555
faults loss=0 duplicate=0 corrupt=0 delay=0.181 jitter=0
chaos 3
net 0 host suites=2
net 1 suites=2 hosts=0
0 #13 store 0 delay=11.705
0.576 #2 request 1>0 DELETE len=most deadline=9.732 answer=17 after=never way=host repeatable
1.386 #6 kill 1
1.402 #10 clock 0 ahead=-52836503595
1.88 #5 rekey 0 which=5
3 #9 start 1 keeps-disk
";
    let plan = script::parse(script).expect("the script is well formed");
    assert_eq!(scenario::run_plan(&plan, Manner::default()).violations, Vec::<String>::new());
}
