"The systems of the survey: generators and translators behind two protocols"
