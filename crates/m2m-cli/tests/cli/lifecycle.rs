//! Starting, stopping, and what happens when a host dies.
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::world::{Running, World};

#[test]
fn a_signal_stops_hosts_and_devices_cleanly() {
    let world = World::new();
    for signal in ["TERM", "INT"] {
        let mut host = world.host();
        let mut device = world.device(&host, &["--echo"]);
        device.signal(signal);
        assert_eq!(device.end(), Some(0), "{}", device.words());
        host.signal(signal);
        assert_eq!(host.end(), Some(0), "{}", host.words());
    }
}

#[test]
fn a_device_that_stops_is_offline_at_once() {
    let world = World::new();
    let host = world.host();
    let mut device = world.device(&host, &[]);
    assert_eq!(world.app(&host, &["online", "2"]).ok(), "online\n");
    device.signal("TERM");
    assert_eq!(device.end(), Some(0));
    assert_eq!(world.app(&host, &["online", "2"]).code, Some(3));
}

#[test]
fn a_device_is_ready_before_its_host() {
    let world = World::new();
    let placeholder = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = placeholder.local_addr().unwrap().to_string();
    let at = format!("1@{address}");
    let words = ["node", "--id", "2", "--key-file", "dev.key", "--host", &at, "--host-key-file", "host.key"];
    let device = Running::start(world.command(&[&words[..], &["--bind", "127.0.0.1:0", "--json"]].concat()));
    drop(placeholder);
    let _host = world.host_at(&address);
    device.wait_for("host_connected");
}

/// The promise of the project: within a minute, and nobody touches the device.
#[test]
fn a_device_returns_to_a_host_that_was_killed() {
    let world = World::new();
    let mut host = world.host();
    let device = world.device(&host, &["--echo"]);
    assert_eq!(world.app(&host, &["send", "2", "before"]).ok(), "before\n");
    let address = host.address.clone();
    host.signal("KILL");
    assert_eq!(host.end(), None);

    let host = world.host_at(&address);
    // The device's session with the host is opened anew under its old handle: nothing is told there, it just works.
    let start = Instant::now();
    let is_back = || world.app(&host, &["send", "2", "after"]).stdout == "after\n";
    while !is_back() {
        assert!(start.elapsed() < Duration::from_secs(60), "it did not come back: {}", device.words());
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn a_second_host_takes_over_from_one_that_was_killed() {
    let world = World::new();
    let mut first = world.host();
    world.run(&["keygen", "-o", "second.key"]).ok();
    let words = ["server", "--id", "8", "--key-file", "second.key", "--bind", "127.0.0.1:0", "--json"];
    let second = Running::start(world.command(&words));
    let [at_first, at_second] =
        [("1", &first), ("8", &second)].map(|(id, host)| format!("{id}@{}", host.address));
    let hosts = ["--host", &at_first, "--host", &at_second];
    let keys = ["--host-key-file", "host.key", "--host-key-file", "second.key"];
    let words = ["node", "--id", "2", "--key-file", "dev.key", "--bind", "127.0.0.1:0", "--echo", "--json"];
    let device = Running::start(world.command(&[&words[..], &hosts, &keys].concat()));
    let connected = device.wait_for("host_connected");
    assert!(connected["host"].as_str().unwrap().ends_with('1'), "{connected}");

    first.signal("KILL");
    assert_eq!(first.end(), None);
    let connected = device.wait_for("host_connected");
    assert!(connected["host"].as_str().unwrap().ends_with('8'), "{connected}");
    let words = ["send", "2", "still there?", "--key-file", "app.key", "--peer-key-file", "dev.key"];
    assert_eq!(world.run(&[&words[..], &hosts, &keys].concat()).ok(), "still there?\n");

    let three = ["--host", "9@127.0.0.1:9"];
    world.run(&[&words[..], &hosts, &three, &keys].concat()).fails(7, &["3 hosts and 2 host keys"]);
}

#[test]
fn an_interrupted_ping_is_summed_up() {
    let world = World::new();
    let host = world.host();
    let at = format!("1@{}", host.address);
    let words = ["ping", "-n", "1000", "--interval", "0.1", "--key-file", "host.key", &at];
    let mut child = world.command(&words).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert!(lines.next().unwrap().unwrap().starts_with("1: "));
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
    let summary = lines.last().unwrap().unwrap();
    assert!(summary.contains(" sent, ") && summary.contains(" answered, "), "{summary}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() {
    let world = World::new();
    let host = world.host();
    let _device = world.device(&host, &["--echo"]);
    let words = world.app_words(&host, &["ping", "-n", "1000", "--interval", "0.01", "2"]);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let mut child = world.command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Reads a line, as `| head -1` does, and closes the pipe.
    let mut first = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut first)
        .unwrap();
    assert!(first.starts_with("1: "), "{first}");
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn a_host_outlives_the_reader_of_its_first_line() {
    let world = World::new();
    let mut words =
        world.command(&["server", "--id", "1", "--key-file", "host.key", "--bind", "127.0.0.1:0"]);
    let mut child = words.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut ready = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut ready)
        .unwrap();
    let address = ready.trim_end().strip_prefix("m2m server 1 ready on ").expect(&ready).to_owned();
    let at = format!("1@{address}");
    let online = world.run(&["online", "--key-file", "host.key", "--host", &at, "2"]);
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!((online.code, online.stdout.as_str()), (Some(3), "offline\n"), "{online:?}");
}

/// A supervisor that opens a pipe and forgets it must still be able to stop what it started.
#[cfg(target_os = "linux")]
#[test]
fn a_reader_that_stalls_keeps_nobody_from_stopping() {
    use std::io::{BufRead, BufReader, Write};
    let world = World::new();
    // As much as a pipe holds, so that not even the first line fits.
    let (_reader, mut pipe) = std::io::pipe().unwrap();
    pipe.write_all(&[b'\n'; 65536]).unwrap();
    let words = ["server", "-v", "--json", "--id", "1", "--key-file", "host.key", "--bind", "127.0.0.1:0"];
    let mut child = world.command(&words).stdout(pipe).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("net open")), "it never opened");
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    let sent = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
    while child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let took = start.elapsed();
    let _ = child.kill();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn the_demo_holds() {
    let world = World::new();
    let demo = world.run(&["demo", "--json"]);
    let steps = demo.objects();
    assert!(steps.len() >= 29, "{demo:?}");
    for step in &steps {
        assert_eq!(step["ok"], true, "{step}");
        assert!(step["step"].is_string() && step["ms"].is_u64(), "{step}");
    }
    demo.ok();
}
