//! `m2m keygen`: makes a net key, or from a net key the pair key of one direction.
use std::io::{self, BufRead, IsTerminal};
use std::path::Path;

use m2m::Id;
use m2m::keyfile::KeyFile;
use m2m_proto::session::keys::NetKey;
use serde_json::json;
use zeroize::Zeroizing;

use crate::args::Keygen;
use crate::config::Settings;
use crate::exit::{Exit, Failure};
use crate::output::{Output, short};

pub(super) fn run(settings: &Settings, output: Output, args: &Keygen) -> Result<Exit, Failure> {
    let key = match &args.pair {
        Some(pair) => make_pair(settings, pair)?,
        None if args.passphrase => KeyFile::from_passphrase(&read_passphrase()?, &args.label)?,
        None => random()?,
    };
    match &args.output {
        Some(path) => write(&key, path, output),
        None => {
            let text = key.to_text();
            output.line(text.trim_end(), &json!({"key": text.trim_end()}))?;
            Ok(Exit::Ok)
        }
    }
}

fn write(key: &KeyFile, path: &Path, output: Output) -> Result<Exit, Failure> {
    key.write(path)?;
    output.event(
        &format!("m2m: wrote {}; who has this file has the key", path.display()),
        &json!({"event": "written", "file": path.display().to_string()}),
    );
    Ok(Exit::Ok)
}

fn random() -> Result<KeyFile, Failure> {
    Ok(KeyFile::generate()?)
}

/// The key that lets A open sessions to B, from B's net key.
fn make_pair(settings: &Settings, pair: &[Id]) -> Result<KeyFile, Failure> {
    let &[initiator, responder] = pair else {
        return Err(Failure::Other("a pair is two ids".into()));
    };
    if initiator == responder {
        return Err(Failure::Configuration("a pair key is for two ids, and these are one".into()));
    }
    if settings.key.is_none() {
        let responder = short(responder);
        return Err(Failure::Configuration(format!(
            "a pair key is made from B's own key: give --key-file FILE with the key of {responder}"
        )));
    }
    let KeyFile::Net(key) = settings.need_key()? else {
        return Err(Failure::Configuration(
            "a pair key is made from B's own net key, and --key-file holds a pair key already".into(),
        ));
    };
    let key = NetKey::new(&key).map_err(|error| Failure::Configuration(error.to_string()))?;
    let key = Zeroizing::new(*key.pair(initiator, responder).as_bytes());
    Ok(KeyFile::Pair { initiator, responder, key })
}

fn read_passphrase() -> Result<Zeroizing<String>, Failure> {
    let failed = |error: io::Error| Failure::Other(format!("can't read the passphrase: {error}"));
    if io::stdin().is_terminal() {
        return rpassword::prompt_password("Passphrase: ").map(Zeroizing::new).map_err(failed);
    }
    let mut line = Zeroizing::new(String::with_capacity(1024));
    io::stdin().lock().read_line(&mut line).map_err(failed)?;
    Ok(Zeroizing::new(line.trim_end_matches(['\r', '\n']).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_key_has_32_digits_and_is_another_each_time() {
        let (one, two) = (random().unwrap(), random().unwrap());
        assert_eq!(one.to_text().trim_end().len(), 32);
        assert_ne!(one.bytes(), two.bytes());
    }
}
