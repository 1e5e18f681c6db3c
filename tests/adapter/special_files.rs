//! Pipes, devices, sockets and directories where a file should be: refused at once, by everything that reads or writes.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use ln_tuning::models::{DecoderConfig, ModelConfig};
use ln_tuning::pretrained::{self, ModelFiles};
use ln_tuning::{merge, Error, ErrorKind, LnTuningConfig, LnTuningModel, SavedAdapter};
use rustix::fs::{mknodat, FileType, Mode, CWD};
use tch::Kind;

use crate::nets::Net;

type Make = fn(&Path);

const SPECIAL: [(&str, Make); 4] = [
    ("a pipe", |path| mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap()),
    ("a device", |path| symlink("/dev/zero", path).unwrap()),
    ("a socket", |path| drop(UnixListener::bind(path).unwrap())),
    ("a directory", |path| std::fs::create_dir(path).unwrap()),
];

/// The error of `f`, which must come within ten seconds.
fn error<T>(f: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Error {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || send.send(f().map(drop)));
    receive.recv_timeout(Duration::from_secs(10)).expect("it waits").unwrap_err()
}

/// An adapter and a model that it fits, in a directory.
fn saved(dir: &Path) {
    let net = Net::new(Kind::Float);
    pretrained::save(&net.vs, dir.join("model"), r#"{"model_type": "llama"}"#).unwrap();
    let tuned = LnTuningModel::new(&net.vs, LnTuningConfig::default()).unwrap();
    tuned.save_pretrained(dir.join("adapter")).unwrap();
}

#[test]
fn nothing_but_regular_files_is_read() {
    type Read = fn(PathBuf) -> Result<(), Error>;
    let readers: [(&str, Read); 12] = [
        ("adapter/adapter_config.json", |dir| SavedAdapter::open(dir.join("adapter")).map(drop)),
        ("adapter/adapter_model.safetensors", |dir| {
            SavedAdapter::open(dir.join("adapter")).map(drop)
        }),
        ("adapter/adapter_model.safetensors", |dir| {
            merge(dir.join("model"), dir.join("adapter"), dir.join("out"), |_, _| ()).map(drop)
        }),
        ("adapter/adapter_config.json", |dir| {
            LnTuningModel::from_pretrained(&Net::new(Kind::Float).vs, dir.join("adapter")).map(drop)
        }),
        ("model/config.json", |dir| ModelFiles::open(dir.join("model")).map(drop)),
        ("model/model.safetensors", |dir| ModelFiles::open(dir.join("model")).map(drop)),
        ("model/generation_config.json", |dir| {
            ModelFiles::open(dir.join("model"))?.generation_config().map(drop)
        }),
        ("model/model.safetensors.index.json", |dir| {
            std::fs::remove_file(dir.join("model/model.safetensors")).unwrap();
            ModelFiles::open(dir.join("model")).map(drop)
        }),
        ("model/vocab.txt", |dir| {
            merge(dir.join("model"), dir.join("adapter"), dir.join("out"), |_, _| ()).map(drop)
        }),
        ("model/config.json", |dir| {
            DecoderConfig::from_file(dir.join("model/config.json")).map(drop)
        }),
        ("a.json", |dir| LnTuningConfig::from_file(dir.join("a.json")).map(drop)),
        ("a.yaml", |dir| LnTuningConfig::from_file(dir.join("a.yaml")).map(drop)),
    ];
    for (what, make) in SPECIAL {
        for (file, read) in readers {
            if what == "a directory" && file == "model/vocab.txt" {
                continue; // It is copied.
            }
            let dir = tempfile::tempdir().unwrap();
            saved(dir.path());
            let path = dir.path().join(file);
            let _ = std::fs::remove_file(&path);
            make(&path);
            let root = dir.path().to_owned();
            let error = error(move || read(root));
            let text = error.to_string();
            assert_eq!(error.kind(), ErrorKind::CorruptFile, "{what} as {file}: {text}");
            assert!(text.contains(path.to_str().unwrap()) && text.contains(what), "{text}");
            assert!(!dir.path().join("out").exists(), "{what} as {file}");
        }
    }
}

#[test]
fn nothing_but_regular_files_is_replaced_by_a_save() {
    for (what, make) in SPECIAL {
        for file in ["README.md", "adapter_config.json", "adapter_model.safetensors"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(file);
            make(&path);
            let root = dir.path().to_owned();
            let error = error(move || {
                let net = Net::new(Kind::Float);
                LnTuningModel::new(&net.vs, LnTuningConfig::default())?.save_pretrained(root)
            });
            let text = error.to_string();
            assert_eq!(error.kind(), ErrorKind::Io, "{what} as {file}: {text}");
            assert!(text.contains(path.to_str().unwrap()) && text.contains(what), "{text}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{what} as {file}");
        }
    }
}

/// The cache of the Hugging Face hub consists of links.
#[test]
fn links_to_regular_files_are_read() {
    let dir = tempfile::tempdir().unwrap();
    saved(dir.path());
    let linked = dir.path().join("linked");
    std::fs::create_dir(&linked).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        symlink(dir.path().join("adapter").join(file), linked.join(file)).unwrap();
    }
    SavedAdapter::open(&linked).unwrap();
}

#[test]
fn configurations_of_any_length_and_depth_are_refused_soon() {
    let dir = tempfile::tempdir().unwrap();
    let endless = dir.path().join("endless.json");
    std::fs::File::create(&endless).unwrap().set_len(1 << 40).unwrap();
    let text = error(move || LnTuningConfig::from_file(endless)).to_string();
    assert!(text.contains("longer than"), "{text}");
    for text in
        ["[".repeat(100_000), r#"{"auto_mapping":"#.to_owned() + &r#"{"a":"#.repeat(100_000)]
    {
        let yaml = text.clone();
        let refused = [
            error(move || LnTuningConfig::from_json(&text)),
            error(move || LnTuningConfig::from_yaml(&yaml)),
        ];
        assert!(refused.iter().all(|error| error.kind() == ErrorKind::InvalidConfig));
    }
}
