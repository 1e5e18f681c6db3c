//! A folder of images: a folder in it for each class. Files that are not read are named.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use image::ImageFormat;
use ln_tuning::{natural_cmp, regular};

use crate::records::digest::Digest;

/// The ends of names by which pictures are known.
const ENDS: [&str; 18] = [
    "png", "apng", "jpg", "jpeg", "jpe", "jfif", "pjpeg", "webp", "gif", "bmp", "dib", "tif",
    "tiff", "pbm", "pgm", "ppm", "pnm", "jif",
];
/// Formats that are known by the first bytes, whatever the name.
const CONTENTS: [ImageFormat; 5] =
    [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Gif, ImageFormat::WebP, ImageFormat::Tiff];

pub struct Folder {
    /// The pictures with their classes, in natural order.
    pub files: Vec<(PathBuf, String)>,
    pub left_out: LeftOut,
}

/// Files that are not read: by their kind, how many, and the names of the first.
#[derive(Default)]
pub struct LeftOut(BTreeMap<String, (usize, Vec<String>)>);

/// Names of a kind that are shown.
const SHOWN: usize = 3;

impl Folder {
    /// # Errors
    /// If a class has no picture: it would be gone from the model's labels.
    pub fn open(dir: &Path, digest: &mut Digest) -> Result<Self> {
        let mut folder = Folder { files: Vec::new(), left_out: LeftOut::default() };
        let mut loose = 0;
        for entry in sorted(dir)? {
            let class = name(&entry);
            if !entry.is_dir() || class.starts_with('.') {
                loose += usize::from(entry.is_file() && is_picture(&entry)?);
                folder.left_out.add(dir, &entry)?;
                continue;
            }
            // Two such names would be one label.
            ensure!(
                entry.to_str().is_some(),
                "the name of the class '{class}' is not UTF-8: give the folder another name"
            );
            let (before, mut others) = (folder.files.len(), LeftOut::default());
            for file in sorted(&entry)? {
                if file.is_dir() || name(&file).starts_with('.') || !is_picture(&file)? {
                    others.add(dir, &file)?;
                    continue;
                }
                digest.add(file.to_string_lossy().as_bytes());
                digest.add(&file.metadata().map_or(0, |data| data.len()).to_le_bytes());
                folder.files.push((file, class.clone()));
            }
            if folder.files.len() == before {
                let found = others.report().unwrap_or_else(|| "nothing".into());
                bail!(
                    "the folder of the class '{class}' has no picture that can be read ({}): found {found}. Convert them, \
                     or take the folder away",
                    ENDS[..13].join(", ")
                );
            }
            folder.left_out.join(others);
        }
        if folder.files.is_empty() {
            let found = match loose {
                0 => "found none".into(),
                _ => format!("found {loose} pictures without a class"),
            };
            bail!(
                "'{}': expected a folder for each class, with pictures in it; {found}",
                dir.display()
            );
        }
        Ok(folder)
    }
}

impl LeftOut {
    /// Words about them, if there are any.
    pub fn report(&self) -> Option<String> {
        let kinds = self.0.iter().map(|(kind, (count, names))| {
            let more = if *count > names.len() { ", …" } else { "" };
            format!("{count} {kind} ({}{more})", names.join(", "))
        });
        (!self.0.is_empty()).then(|| kinds.collect::<Vec<_>>().join(", "))
    }

    fn add(&mut self, dir: &Path, path: &Path) -> Result<()> {
        let end = path.extension().map(|end| end.to_string_lossy().to_lowercase());
        let kind = match end {
            _ if path.is_dir() => "folders".into(),
            _ if !path.is_file() => "files of a special kind".into(),
            _ if name(path).starts_with('.') => "hidden files".into(),
            Some(end) => format!(".{end}"),
            None => "files without an extension".into(),
        };
        let (count, names) = self.0.entry(kind).or_default();
        *count += 1;
        if names.len() < SHOWN {
            names.push(path.strip_prefix(dir)?.display().to_string());
        }
        Ok(())
    }

    fn join(&mut self, other: Self) {
        for (kind, (more, further)) in other.0 {
            let (count, names) = self.0.entry(kind).or_default();
            *count += more;
            names.extend(further);
            names.truncate(SHOWN);
        }
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn sorted(dir: &Path) -> Result<Vec<PathBuf>> {
    let place = || format!("cannot read the folder '{}'", dir.display());
    let paths = std::fs::read_dir(dir).with_context(place)?.map(|entry| Ok(entry?.path()));
    let mut paths = paths.collect::<Result<Vec<_>>>().with_context(place)?;
    paths.sort_by(|a, b| natural_cmp(&a.to_string_lossy(), &b.to_string_lossy()));
    Ok(paths)
}

/// By the end of the name, or by the first bytes. A link that leads nowhere counts by its name: it is a bad picture.
fn is_picture(path: &Path) -> Result<bool> {
    let end = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let named = ENDS.contains(&end.as_str());
    match path.metadata() {
        // A pipe would never end.
        Ok(data) if !data.is_file() => Ok(false),
        Err(_) => Ok(named),
        Ok(_) if named => Ok(true),
        Ok(_) => {
            let mut head = Vec::new();
            let place = || format!("cannot read '{}'", path.display());
            regular::open(path)?.take(16).read_to_end(&mut head).with_context(place)?;
            Ok(image::guess_format(&head).is_ok_and(|format| CONTENTS.contains(&format)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(files: &[(&str, &[u8])]) -> Result<Folder> {
        let dir = tempfile::tempdir()?;
        for (name, bytes) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().context("a folder")?)?;
            std::fs::write(path, bytes)?;
        }
        Folder::open(dir.path(), &mut Digest::new())
    }

    #[test]
    fn what_is_no_picture_is_left_out_by_kind_and_name() {
        let png = b"\x89PNG\r\n\x1a\n".as_slice();
        let folder = open(&[
            ("cat/1.PNG", b""),
            ("cat/2.jfif", b""),
            ("cat/3", png),
            ("cat/10.heic", b""),
            ("cat/9.heic", b""),
            ("cat/notes.txt", b"BM is how a bitmap begins"),
            ("cat/.DS_Store", b""),
            ("cat/._1.png", b""),
            ("cat/more/4.png", png),
            ("dog/1.webp", b""),
            ("dog/a.heic", b""),
            ("dog/b.heic", b""),
            ("dog/LICENSE", b"free"),
            ("metadata.jsonl", b""),
            (".cache/1.png", png),
        ])
        .unwrap();
        let names: Vec<String> = folder.files.iter().map(|(path, _)| name(path)).collect();
        assert_eq!(names, ["1.PNG", "2.jfif", "3", "1.webp"]);
        assert_eq!(folder.files[3].1, "dog");
        assert_eq!(
            folder.left_out.report().unwrap(),
            "4 .heic (cat/9.heic, cat/10.heic, dog/a.heic, …), 1 .jsonl (metadata.jsonl), 1 .txt (cat/notes.txt), \
             1 files without an extension (dog/LICENSE), 2 folders (.cache, cat/more), 2 hidden files (cat/.DS_Store, \
             cat/._1.png)"
        );
        assert!(open(&[("a/1.png", png)]).unwrap().left_out.report().is_none());
    }

    #[test]
    fn a_class_without_a_picture_is_refused_by_name() {
        for (files, words) in [
            (
                &[("a/1.png", b"".as_slice()), ("b/1.avif", b""), ("b/2.svg", b"")][..],
                "class 'b' has no picture",
            ),
            (
                &[("a/1.png", b""), ("b/1.avif", b""), ("b/2.svg", b"")],
                "found 1 .avif (b/1.avif), 1 .svg (b/2.svg)",
            ),
            (
                &[("train/a/1.png", b""), ("train/b/1.png", b"")],
                "found 2 folders (train/a, train/b)",
            ),
            (
                &[("1.png", b""), ("2.png", b"")],
                "expected a folder for each class, with pictures in it; found 2 pictures",
            ),
        ] {
            let error = open(files).err().unwrap().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_left_out_and_a_link_that_leads_nowhere_is_a_bad_picture() {
        let dir = tempfile::tempdir().unwrap();
        let class = dir.path().join("a");
        std::fs::create_dir(&class).unwrap();
        for pipe in ["pipe", "pipe.png"] {
            let made = std::process::Command::new("mkfifo").arg(class.join(pipe)).status().unwrap();
            assert!(made.success());
        }
        std::os::unix::fs::symlink("nowhere.png", class.join("link.png")).unwrap();
        let folder = Folder::open(dir.path(), &mut Digest::new()).unwrap();
        assert_eq!(folder.files.len(), 1);
        assert_eq!(
            folder.left_out.report().unwrap(),
            "2 files of a special kind (a/pipe, a/pipe.png)"
        );
        let name = std::os::unix::ffi::OsStrExt::from_bytes(b"b\xff");
        std::fs::create_dir(dir.path().join::<&std::ffi::OsStr>(name)).unwrap();
        let error = Folder::open(dir.path(), &mut Digest::new()).err().unwrap().to_string();
        assert!(error.contains("is not UTF-8"), "{error}");
    }
}
