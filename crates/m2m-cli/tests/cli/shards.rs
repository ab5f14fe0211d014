//! A host of several shards, from the command line.
use std::time::{Duration, Instant};

use crate::world::{Running, World};

/// Starts a host of so many shards here.
fn host(world: &World, bind: &str, shards: &str) -> Running {
    let words = ["server", "--id", "1", "--key-file", "host.key", "--state-dir", "host", "--json"];
    Running::start(world.command(&[&words[..], &["--bind", bind, "--shards", shards]].concat()))
}

#[test]
fn a_device_returns_to_a_host_of_shards_that_was_killed() {
    let world = World::new();
    let mut first = host(&world, "127.0.0.1:0", "4");
    let device = world.device(&first, &["--echo"]);
    assert_eq!(world.app(&first, &["send", "2", "before"]).ok(), "before\n");
    assert_eq!(world.app(&first, &["online", "2"]).ok(), "online\n");
    let address = first.address.clone();
    first.signal("KILL");
    assert_eq!(first.end(), None);

    let second = host(&world, &address, "auto");
    let start = Instant::now();
    while world.app(&second, &["send", "2", "after"]).stdout != "after\n" {
        assert!(start.elapsed() < Duration::from_secs(60), "it did not come back: {}", device.words());
        std::thread::sleep(Duration::from_millis(500));
    }
    second.signal("USR1");
    let counters = second.wait_for("counters");
    assert!(counters["handed_over"].is_u64() && counters["dropped"]["shard_full"] == 0, "{counters}");
    assert!(counters["relayed"].as_u64() > Some(0), "{counters}");
}

#[test]
fn shards_may_stand_in_the_file() {
    let world = World::new();
    std::fs::write(world.path("m2m.toml"), "id = \"1\"\nkey_file = \"host.key\"\nshards = 3\n").unwrap();
    let words = ["server", "--config", "m2m.toml", "--bind", "127.0.0.1:0", "--json"];
    let host = Running::start(world.command(&words));
    let device = world.device(&host, &["--echo"]);
    assert_eq!(world.app(&host, &["send", "2", "x"]).ok(), "x\n", "{}", device.words());
    world.run(&["server", "--shards", "0"]).fails(2, &["1 to 128"]);
}
