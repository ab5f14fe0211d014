//! What is done to nets from afar and beside them: counters, keys, pins, claims.
use std::time::Duration;

use crate::world::{Running, World};

#[cfg(unix)]
#[test]
fn the_counters_of_a_host_and_a_device_are_shown_when_asked_for() {
    let world = World::new();
    let host = world.host();
    let device = world.device(&host, &["--echo"]);
    assert_eq!(world.app(&host, &["send", "2", "hello"]).ok(), "hello\n");
    // Of the original of 2018.
    let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(&[0x51; 20], &host.address).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    host.signal("USR1");
    let counters = host.wait_for("counters");
    assert_eq!(counters["registrations"], 1, "{counters}");
    assert_eq!(counters["dropped"]["version"], 1, "{counters}");
    assert_eq!(counters["dropped"]["bad_handshake"], 0, "{counters}");
    for name in ["datagrams_in", "datagrams_out", "relayed", "handshakes", "sessions"] {
        assert!(counters[name].as_u64().is_some_and(|count| count > 0), "{name}: {counters}");
    }
    for name in
        ["half_open", "cookies", "hints", "recoveries", "rekeys", "moves", "moves_failed", "send_errors"]
    {
        assert!(counters[name].is_u64(), "{name}: {counters}");
    }
    // As often as it is asked for.
    host.signal("USR1");
    assert!(host.wait_for("counters")["datagrams_in"].as_u64() >= counters["datagrams_in"].as_u64());
    device.signal("USR1");
    assert_eq!(device.wait_for("counters")["registrations"], 0);
}

#[cfg(unix)]
#[test]
fn the_counters_are_words_for_people() {
    use std::io::BufRead;
    let world = World::new();
    let words = ["server", "-q", "--id", "1", "--key-file", "host.key", "--bind", "127.0.0.1:0"];
    let mut child = world
        .command(&words)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let sent = std::process::Command::new("kill").args(["-USR1", &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
    let lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let lines: Vec<_> = lines.take(4).collect();
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(lines[0], "m2m: sessions 0, half open 0, registrations 0");
    assert!(lines[1].starts_with("m2m: datagrams in 0, datagrams out 0, "), "{lines:?}");
    assert_eq!(
        lines[2],
        "m2m: handshakes 0, cookies 0, hints 0, errors 0, recoveries 0, rekeys 0, moves 0, moves failed 0"
    );
    assert!(lines[3].starts_with("m2m: dropped: malformed 0, version 0, kind 0, not mine 0, "), "{lines:?}");
    assert!(lines[3].contains(", hop limit 0, output full 0"), "{lines:?}");
}

#[test]
fn a_net_key_is_changed_from_afar() {
    let world = World::new();
    let host = world.host();
    world.run(&["keygen", "-o", "new.key"]).ok();
    let set = ["key", "set", "2", "--new-key-file", "new.key"];
    let device = world.device(&host, &["--echo"]);
    world.app(&host, &set).fails(1, &["does not allow", "--allow-key-change"]);
    drop(device);

    let device = world.device(&host, &["--echo", "--allow-key-change"]);
    let done = world.app(&host, &set);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stderr.contains("new.key"), "{done:?}");
    device.wait_for("key_changed");
    let with_new = |words: &[&str]| {
        let flags = ["--id", "3", "--key-file", "app.key", "--host-key-file", "host.key"];
        let at = format!("1@{}", host.address);
        world.run(&[words, &flags, &["--host", &at, "--peer-key-file", "new.key"]].concat())
    };
    assert_eq!(with_new(&["send", "2", "hi"]).ok(), "hi\n");
    drop(device);
    // It has kept it, though its key file is the old one.
    let device = world.device(&host, &["--echo"]);
    assert_eq!(with_new(&["send", "2", "again"]).ok(), "again\n");
    let key = std::fs::read_to_string(world.path("new.key")).unwrap();
    assert!(!format!("{done:?}{}", device.words()).contains(key.trim()), "no key is printed");

    world.run(&["keygen", "--pair", "3", "2", "--key-file", "dev.key", "-o", "pair.key"]).ok();
    let by_pair = ["key", "set", "2", "--new-key-file", "pair.key"];
    world.app(&host, &by_pair).fails(7, &["pair key"]);
    world.app(&host, &["key", "set", "2"]).fails(2, &["--new-key-file"]);
    world.app(&host, &["key", "set", "2", "--new-key-file", "none.key"]).fails(7, &["none.key"]);
}

#[test]
fn a_pin_tells_one_device_from_others_with_its_key() {
    let world = World::new();
    let host = world.host();
    let _device = world.device(&host, &["--echo"]);
    let shown = world.run(&["id", "--id", "2", "--key-file", "dev.key", "--json"]).objects();
    let public = shown[0]["device"].as_str().unwrap().to_owned();
    assert_eq!(world.app(&host, &["send", "--pin", &public, "2", "hi"]).ok(), "hi\n");
    let other = "0a".repeat(32);
    world.app(&host, &["send", "--pin", &other, "2", "hi"]).fails(6, &["pinned device key"]);
    world.app(&host, &["send", "--pin", "0a", "2", "hi"]).fails(2, &["64 hex digits"]);

    let config = |pin: &str| {
        let text = format!("[peers]\nkitchen = {{ peer = \"2\", pin = \"{pin}\" }}\n");
        std::fs::write(world.path("pins.toml"), text).unwrap();
        world.app(&host, &["send", "--config", "pins.toml", "kitchen", "hi"])
    };
    assert_eq!(config(&public).ok(), "hi\n");
    config(&other).fails(6, &["pinned device key"]);
    config("0a").fails(7, &["pins.toml", "line 2", "64 hex digits"]);
}

/// An id is pinned before its device first comes; nobody else gets it, nor any other id.
#[test]
fn a_strict_host_registers_who_is_listed() {
    let world = World::new();
    let claims = |words: &[&str]| world.run(&[&["server", "claims", "--state-dir", "host"], words].concat());
    let shown = world.run(&["id", "--id", "2", "--key-file", "dev.key", "--json"]).objects();
    let public = shown[0]["device"].as_str().unwrap().to_owned();
    assert_eq!(claims(&["pin", "2", &public]).code, Some(0));
    let flags = ["--id", "1", "--key-file", "host.key", "--bind", "127.0.0.1:0", "--state-dir", "host"];
    let host = Running::start(world.command(&[&["server", "--strict", "--json"], &flags[..]].concat()));
    let device = world.device(&host, &["--echo"]);

    let at = format!("1@{}", host.address);
    let node = |id: &str, folder: &str| {
        let words = ["node", "--id", id, "--key-file", "dev.key", "--host", &at, "--state-dir", folder];
        let more = ["--host-key-file", "host.key", "--bind", "127.0.0.1:0", "--json"];
        Running::start(world.command(&[&words[..], &more].concat()))
    };
    let why = |device: &Running| device.wait_for("host_refused")["why"].as_str().unwrap().to_owned();
    let unlisted = node("5", "five");
    assert!(why(&unlisted).contains("m2m server claims pin"), "{}", why(&unlisted));
    assert!(why(&node("2", "impostor")).contains("claimed by another key"));
    // The commands of the app, which claims id 3, are refused in words.
    world.app(&host, &["send", "2", "hi"]).fails(1, &["listed devices only"]);
    assert!(host.words().contains("takes listed device keys only"), "{}", host.words());
    let listed = claims(&["list", "--json"]).objects();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0]["device"], public.as_str());

    // Listed beside the running host, it gets in when it tries again, which a restart makes sooner.
    drop(unlisted);
    let five = world.run(&["id", "--id", "5", "--key-file", "dev.key", "--state-dir", "five", "--json"]);
    assert_eq!(claims(&["pin", "5", five.objects()[0]["device"].as_str().unwrap()]).code, Some(0));
    node("5", "five").wait_for("host_connected");
    // Forgotten again, it is not taken any more once it comes anew.
    assert_eq!(claims(&["forget", "5", "--json"]).objects()[0]["was_claimed"], true);
    assert!(why(&node("5", "five")).contains("listed devices only"));
    // Whoever has no id of its own hears what that host wants of it.
    let random =
        ["send", "2", "hi", "--host", &at, "--host-key-file", "host.key", "--peer-key-file", "dev.key"];
    world.run(&random).fails(1, &["a random id is none", "--id"]);
    // One that is registered is not waited for: it goes.
    assert_eq!(claims(&["forget", "2"]).code, Some(0));
    assert!(why(&device).contains("listed devices only"));
}

/// Whoever is registered and loses the claim to its id is told within a second, not at its next start.
#[test]
fn a_claim_that_is_given_to_another_ends_a_running_registration() {
    let world = World::new();
    let host = world.host();
    let device = world.device(&host, &["--echo"]);
    world.app(&host, &["send", "2", "hi"]).ok();
    let claims = |words: &[&str]| world.run(&[&["server", "claims", "--state-dir", "host"], words].concat());
    // A change that concerns others, and one that changes nothing, end nothing.
    assert_eq!(claims(&["forget", "7"]).code, Some(0));
    let own = world.run(&["id", "--id", "2", "--key-file", "dev.key", "--json"]).objects();
    assert_eq!(claims(&["pin", "2", own[0]["device"].as_str().unwrap()]).code, Some(0));
    std::thread::sleep(Duration::from_millis(2_500));
    world.app(&host, &["online", "2"]).ok();

    assert_eq!(claims(&["pin", "2", &"5a".repeat(32)]).code, Some(0));
    let patience = Duration::from_secs(20);
    assert!(
        device.wait_for_within("host_disconnected", patience)["why"].as_str().unwrap().contains("refused")
    );
    let why = device.wait_for_within("host_refused", patience);
    assert!(why["why"].as_str().unwrap().contains("claimed by another key"), "{why}");
    world.app(&host, &["online", "2"]).fails(3, &[]);
}

/// A person waits for a command: it asks the second host after three seconds.
#[test]
fn a_command_whose_first_host_is_dead_asks_the_second_soon() {
    let world = World::new();
    let host = world.host();
    let device = world.device(&host, &["--echo"]);
    // It takes what comes, and answers nothing.
    let dead = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (first, second) = (format!("9@{}", dead.local_addr().unwrap()), format!("1@{}", host.address));
    let hosts =
        ["--host", &first, "--host", &second, "--host-key-file", "host.key", "--host-key-file", "host.key"];
    let words = [&["send", "2", "hi", "--timeout", "7", "--peer-key-file", "dev.key"], &hosts[..]].concat();
    world.run(&words).ok();
    drop(device);
}

#[test]
fn a_key_change_under_a_wrong_key_says_so() {
    let world = World::new();
    let host = world.host();
    let device = world.device(&host, &["--echo", "--allow-key-change"]);
    world.run(&["keygen", "-o", "new.key"]).ok();
    let at = format!("1@{}", host.address);
    let words =
        ["key", "set", "2", "--new-key-file", "new.key", "--peer-key-file", "app.key", "--timeout", "6"];
    world.run(&[&words[..], &["--host", &at, "--host-key-file", "host.key"]].concat()).fails(6, &["key"]);
    drop(device);
}
