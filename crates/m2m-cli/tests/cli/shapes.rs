//! What `--json` prints, and the other outputs that programs read.
use serde_json::json;

use crate::world::World;

const TWO: &str = "00000000000000000000000000000002";

#[test]
fn ready_names_id_and_address() {
    let world = World::new();
    let words = ["server", "--id", "1", "--key-file", "host.key", "--bind", "127.0.0.1:0", "--json"];
    let mut child = world.command(&words).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut ready)
        .unwrap();
    let _ = child.kill();
    let _ = child.wait();
    let start = "{\"event\":\"ready\",\"id\":\"00000000000000000000000000000001\",\"addr\":\"127.0.0.1:";
    assert!(ready.starts_with(start), "{ready}");
}

#[test]
fn answers_are_objects() {
    let world = World::new();
    let host = world.host();
    let device = world.device(&host, &["--echo", "--resource", "/temp=21"]);
    let app = |words: &[&str]| world.app(&host, &[&["--json"], words].concat()).objects();

    let sent = app(&["send", "2", "hi"]);
    assert!(sent.len() == 1 && sent[0]["payload"] == "hi" && sent[0]["ms"].is_f64(), "{sent:?}");
    let got = app(&["get", "2", "/temp"]);
    assert_eq!((&got[0]["code"], &got[0]["ok"]), (&json!("2.05"), &json!(true)), "{got:?}");
    assert_eq!((&got[0]["payload"], &got[0]["format"]), (&json!("21"), &json!(0)), "{got:?}");
    let none = app(&["get", "2", "/nothing"]);
    assert!(none.len() == 1 && none[0]["code"] == "4.04" && none[0]["ok"] == false, "{none:?}");
    assert_eq!(app(&["online", "2"]), [json!({"id": TWO, "online": true})]);
    let pings = app(&["ping", "-n", "2", "--interval", "0.05", "2"]);
    assert_eq!(pings.len(), 3, "{pings:?}");
    assert!(
        pings[1]["seq"] == 2 && pings[1]["ms"].is_f64() && pings[1]["path"]["relay"].is_string(),
        "{pings:?}"
    );
    assert!(pings[2]["sent"] == 2 && pings[2]["answered"] == 2, "{pings:?}");
    let at = format!("2@{}", device.address);
    let direct = app(&["ping", "-n", "1", &at]);
    assert_eq!(direct[0]["path"], json!({"direct": device.address}), "{direct:?}");
}

#[test]
fn a_failure_is_an_object_too() {
    let world = World::new();
    let host = world.host();
    let failed = world.app(&host, &["--json", "send", "99", "hi"]);
    let object = &failed.objects()[0];
    assert_eq!((&object["error"], &object["exit"]), (&json!("unknown peer"), &json!(3)), "{failed:?}");
    let sentence = object["message"].as_str().unwrap().to_owned();
    failed.fails(3, &[&sentence]);
}

#[test]
fn quiet_says_only_what_fails() {
    let world = World::new();
    let host = world.host();
    let _device = world.device(&host, &["--resource", "/led=off"]);
    let put = world.app(&host, &["put", "2", "/led", "on"]);
    assert!(put.stderr.contains("2.04 Changed"), "{put:?}");
    let quiet = world.app(&host, &["-q", "put", "2", "/led", "on"]);
    assert_eq!((quiet.code, quiet.stderr.as_str()), (Some(0), ""), "{quiet:?}");
    world.app(&host, &["-q", "get", "2", "/nothing"]).fails(4, &["4.04"]);
}

#[test]
fn shells_and_man_get_their_texts() {
    let world = World::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(world.run(&["completions", shell]).ok().contains("keygen"), "{shell}");
    }
    assert!(world.run(&["man"]).ok().contains(".TH"));
}
