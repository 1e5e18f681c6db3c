//! The words that say how a base is kept, such as `nf4, streamed`.

use ln_tuning::models::{Form, Frozen, Place};
use ln_tuning::ErrorKind;
use serde_json::json;

#[test]
fn the_words_of_a_frozen_base_are_read_as_they_are_written() {
    for (text, form, place) in [
        ("mapped", Form::Plain, Place::Mapped),
        ("device", Form::Plain, Place::Device),
        ("streamed", Form::Plain, Place::Streamed),
        ("gguf", Form::Gguf, Place::Mapped),
        ("int8", Form::Int8, Place::Mapped),
        ("nf4", Form::Nf4, Place::Mapped),
        ("packed", Form::Packed, Place::Mapped),
        ("nf4, streamed", Form::Nf4, Place::Streamed),
        ("gguf, device", Form::Gguf, Place::Device),
    ] {
        let frozen: Frozen = text.parse().unwrap();
        assert_eq!(frozen, Frozen::default().form(form).place(place));
        assert_eq!(frozen.to_string(), text);
        assert_eq!(serde_json::from_value::<Frozen>(json!(text)).unwrap(), frozen);
        assert_eq!(serde_json::to_value(frozen).unwrap(), json!(text));
    }
    for (text, share) in [("streamed, resident 0.5", 0.5), ("gguf, streamed, resident 1", 1.)] {
        let frozen: Frozen = text.parse().unwrap();
        assert_eq!(frozen.to_string(), text);
        assert_eq!(frozen.resident(0.).resident(share), frozen);
    }
    assert_eq!("resident 0,streamed".parse::<Frozen>().unwrap().to_string(), "streamed");
    assert_eq!("streamed,nf4".parse::<Frozen>().unwrap().to_string(), "nf4, streamed");
    let shares = ["resident 0.5", "nf4, resident 1", "streamed, resident", "streamed, resident 2"];
    let more = ["streamed, resident NaN", "streamed, resident 0.5, resident 0.5"];
    let bad =
        ["packed, streamed", "", "int4", "nf4, int8", "device, mapped", "NF4", "nf4 streamed"];
    for bad in bad.into_iter().chain(shares).chain(more) {
        let error = bad.parse::<Frozen>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{bad}");
    }
}
