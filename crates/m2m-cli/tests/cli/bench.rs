//! `m2m bench`: that it measures, that what it says holds together, and that it leaves nothing behind. How fast
//! anything is stands in no test.
use serde_json::Value;

use crate::world::World;

/// Runs a bench for a moment, and gives its objects.
#[track_caller]
fn bench(words: &[&str]) -> Vec<Value> {
    let ended = World::without_keys().run(&[&["bench"], words, &["--json"]].concat());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.objects()
}

/// Its only object, if that has exactly these keys.
#[track_caller]
fn only(objects: &[Value], keys: &[&str]) -> Value {
    let [object] = objects else { panic!("not one object: {objects:?}") };
    let found: Vec<&str> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(found, keys);
    object.clone()
}

#[track_caller]
fn positive(object: &Value, keys: &[&str]) {
    for key in keys {
        assert!(object[*key].as_f64().is_some_and(|value| value > 0.0), "{key}: {object}");
    }
}

const REQUEST: [&str; 12] = [
    "bench",
    "size",
    "inflight",
    "flows",
    "idle",
    "rate",
    "p50_us",
    "p99_us",
    "cpu_ns",
    "cpu_ratio",
    "ratio_echo",
    "ratio_batched",
];

#[test]
fn requests_are_measured_beside_echoes() {
    let object = only(&bench(&["request", "--rounds", "1", "--millis", "20"]), &REQUEST);
    assert_eq!(
        (&object["bench"], &object["size"], &object["inflight"]),
        (&"request".into(), &64.into(), &64.into())
    );
    positive(&object, &["rate", "p50_us", "p99_us", "ratio_echo", "ratio_batched"]);
    assert!(object["p50_us"].as_f64() <= object["p99_us"].as_f64(), "{object}");
    // With 64 on their way all the time, each takes as long as 64 take at this rate, or longer.
    let together = object["rate"].as_f64().unwrap() * object["p99_us"].as_f64().unwrap() / 1e6;
    assert!(together > 16.0, "{object}");
    #[cfg(target_os = "linux")]
    positive(&object, &["cpu_ns", "cpu_ratio"]);
}

#[cfg(target_os = "linux")]
#[test]
fn requests_in_many_flows_beside_idle_sessions() {
    let words = [
        "request",
        "--size",
        "4",
        "--inflight",
        "1",
        "--flows",
        "70",
        "--idle",
        "20",
        "--rounds",
        "2",
        "--millis",
        "5",
    ];
    let object = only(&bench(&words), &REQUEST);
    assert_eq!((&object["inflight"], &object["flows"], &object["idle"]), (&1.into(), &70.into(), &20.into()));
    positive(&object, &["rate", "p50_us", "cpu_ns", "cpu_ratio", "ratio_echo"]);
}

#[cfg(target_os = "linux")]
#[test]
fn relaying_is_measured_beside_forwarders() {
    let keys = ["bench", "flows", "form", "rate", "cpu_ns", "cpu_ratio", "ratio_forwarder"];
    let object = only(&bench(&["relay", "--flows", "10", "--rounds", "1", "--millis", "20"]), &keys);
    assert_eq!((&object["flows"], &object["form"]), (&10.into(), &"id".into()));
    positive(&object, &["rate", "cpu_ns", "cpu_ratio", "ratio_forwarder"]);
}

#[test]
fn handshakes_are_measured_and_forged_ones_refused() {
    let keys = ["bench", "rate", "cpu_us", "forged_rejected_rate"];
    let object = only(&bench(&["handshake", "--rounds", "1", "--millis", "20"]), &keys);
    positive(&object, &["rate"]);
    #[cfg(target_os = "linux")]
    {
        positive(&object, &["cpu_us", "forged_rejected_rate"]);
        // To refuse is cheaper than to set up: otherwise a forger would win.
        let each_us = 1e6 / object["forged_rejected_rate"].as_f64().unwrap();
        assert!(each_us < object["cpu_us"].as_f64().unwrap(), "{object}");
    }
}

#[test]
fn sessions_are_counted_in_bytes() {
    let keys = ["bench", "count", "bytes_per_session", "sweep_ms", "rate_ratio"];
    let object = only(&bench(&["sessions", "--count", "150", "--rounds", "1", "--millis", "20"]), &keys);
    assert_eq!(object["count"], 150);
    positive(&object, &["rate_ratio"]);
    #[cfg(target_os = "linux")]
    positive(&object, &["bytes_per_session", "sweep_ms"]);
}

#[test]
fn bytes_on_the_wire_add_up() {
    let objects = bench(&["wire"]);
    for object in &objects {
        let parts = object["parts"].as_array().expect("parts");
        let sum: u64 = parts.iter().filter_map(|part| part["bytes"].as_u64()).sum();
        assert_eq!(object["bytes"].as_u64(), Some(sum), "{object}");
        let payload = object["payload"].as_u64().unwrap();
        assert!((payload == 6 || payload == 32) && sum > payload, "{object}");
        assert!(
            object["source"] == "measured" || object["source"].as_str().unwrap().contains("RFC "),
            "{object}"
        );
    }
    let named = |name: &str| {
        objects.iter().filter(|object| object["protocol"].as_str().unwrap().starts_with(name)).count()
    };
    // Two payloads, each direct and relayed; with two suites, where there are.
    assert_eq!(
        (named("m2m"), named("DTLS 1.2"), named("DTLS 1.3"), named("OSCORE"), named("QUIC")),
        (8, 8, 8, 4, 4)
    );
}

#[test]
fn people_get_a_table() {
    let world = World::without_keys();
    let text = world.run(&["bench", "request", "--rounds", "1", "--millis", "5"]).ok();
    for word in ["m2m, encrypted", "(a) plain UDP echo", "(b) batched UDP echo", "server CPU"] {
        assert!(text.contains(word), "{word:?} is missing: {text}");
    }
    assert!(world.run(&["bench", "wire"]).ok().contains("OSCORE"));
}

#[test]
fn numbers_that_make_no_sense_are_refused() {
    let world = World::without_keys();
    for words in [
        &["request", "--inflight", "0"][..],
        &["request", "--inflight", "many"],
        &["request", "--size", "3"],
        &["request", "--size", "1025"],
        &["request", "--flows", "0"],
        &["request", "--rounds", "0"],
        &["relay", "--flows", "1"],
        &["sessions", "--count", "0"],
        &["handshake", "--millis", "0"],
    ] {
        world.run(&[&["bench"], words].concat()).fails(2, &[words[1]]);
    }
    world.run(&["bench", "request", "--inflight", "257"]).fails(7, &["--inflight 257", "256"]);
    world.run(&["bench", "server", "echo"]).fails(1, &["m2m bench"]);
}

#[cfg(target_os = "linux")]
mod leaves_nothing {
    use std::fs;
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    use crate::world::World;

    /// The state and the parent of a process (proc(5)): none if it is gone.
    fn standing(pid: u32) -> Option<(char, u32)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut words = stat.rsplit_once(')')?.1.split_whitespace();
        Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
    }

    fn children(of: u32) -> Vec<u32> {
        let all = fs::read_dir("/proc").expect("Linux has it").flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| standing(*pid).is_some_and(|(_, parent)| parent == of)).collect()
    }

    #[test]
    fn servers_end_with_the_bench_however_that_ends() {
        let world = World::without_keys();
        let words = ["bench", "request", "--rounds", "1000"];
        let mut bench = world.command(&words).stdout(Stdio::null()).spawn().expect("it starts");
        let start = Instant::now();
        let patience = Duration::from_secs(20);
        let mut servers = Vec::new();
        while servers.len() < 3 && start.elapsed() < patience {
            servers = children(bench.id());
        }
        assert_eq!(servers.len(), 3, "m2m's server and two yardsticks");
        // It can't do anything about this one.
        bench.kill().expect("it runs");
        bench.wait().expect("it was ours");
        let lives = |pid: &u32| standing(*pid).is_some_and(|(state, _)| state != 'Z' && state != 'X');
        while servers.iter().any(lives) {
            assert!(start.elapsed() < patience, "they live on: {servers:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
