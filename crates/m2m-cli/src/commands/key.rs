//! `m2m key set`: gives a peer a new net key, from afar.
use std::path::Path;

use m2m::Key;
use m2m::keyfile::{KeyFile, KeyWarning};
use serde_json::json;

use crate::args::{KeySet, KeyTask};
use crate::config::Settings;
use crate::exit::{Exit, Failure};
use crate::nets;
use crate::output::{self, Output};

pub(super) async fn run(settings: &Settings, output: Output, task: &KeyTask) -> Result<Exit, Failure> {
    match task {
        KeyTask::Set(set) => self::set(settings, output, set).await,
    }
}

async fn set(settings: &Settings, output: Output, args: &KeySet) -> Result<Exit, Failure> {
    let new = read(&args.new_key_file)?;
    let (net, peer) = nets::net_for(settings, output, &args.peer).await?;
    let done = nets::within(settings, "the peer", net.set_remote_key(peer, &new)).await;
    let done = done.map_err(|failure| nets::with_refusal(&net, failure));
    nets::close(&net).await;
    done?;
    let (peer, file) = (args.peer.to_string(), args.new_key_file.display());
    output.event(
        &format!(
            "m2m: {peer} has the key of {file} from now on; sessions that live stay, and the key before it opens new ones \
             for a day"
        ),
        &json!({"event": "key_set", "peer": peer}),
    );
    Ok(Exit::Ok)
}

fn read(path: &Path) -> Result<Key, Failure> {
    let (key, warnings) = KeyFile::read(path)?;
    warnings.iter().for_each(|warning: &KeyWarning| output::warn(&format!("m2m: {warning}")));
    Ok(Key::from(key))
}
